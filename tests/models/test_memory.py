"""What a model takes, by formula, is what is measured on small ones."""

import pytest
import torch

from models import parallel
from models.components._model import assemble
from models.memory import Sizes, activations, states
from models.muon import Muon, matrices_of_layers

BERT = {"width": 48, "vocabulary": 90, "embedding": {"word": {}, "position": {"length": 32}}, "target": {"mlm": {}},
        "encoder": {"transformer": {"heads": 4, "inner": 112}}}  # fmt: skip
LLAMA = {"width": 48, "vocabulary": 90, "embedding": {"word": {}, "norm": "none"}, "target": {"lm": {}}, "norm": "rms",
         "encoder": {"transformer": {"heads": 4, "inner": 80, "mask": "causal", "norm_first": True, "gated": True,
                                     "act": "silu", "bias": False, "positions": "rotary"}}}  # fmt: skip
GROUPED = LLAMA | {"encoder": {"transformer": LLAMA["encoder"]["transformer"] | {"kv_heads": 2}}}
ROWS, LENGTH = 3, 14  # 42 tokens: no state has the shape of a weight


def made(recipe, layers=3, dropout=0.0, **more):
    encoder = {"transformer": recipe["encoder"]["transformer"] | {"layers": layers, "attention_dropout": 0.0}}
    return assemble(recipe | {"encoder": encoder, "dropout": dropout} | more).train()


def measured(model, half=False) -> tuple[int, int]:
    """Bytes that the backward pass keeps besides weights: of states, and of weights in another type."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters() if p.ndim == 2}
    held: dict[int, torch.Tensor] = {}  # holds them, so that no address is used twice
    batch = {"ids": torch.randint(90, (ROWS, LENGTH)), "mask": torch.ones(ROWS, LENGTH, dtype=torch.bool)}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        model.encode(**batch)
    casts = [t for t in held.values() if t.dtype == torch.bfloat16 and {tuple(t.shape), tuple(t.shape[::-1])} & shapes]
    weights = sum(t.untyped_storage().nbytes() for t in casts)
    return sum(t.untyped_storage().nbytes() for t in held.values()) - weights, weights


def test_by_hand():
    """One layer, D 4, I 8, one head: 4 x (16 + 8 + 16) for products, 4 x (8 + 4 + 1) for norms and log-sums: 212."""
    model = made(BERT | {"width": 4, "encoder": {"transformer": {"heads": 1, "inner": 8}}}, 1)
    sizes = Sizes.of(model)
    assert sizes.kept() == 4 * (4 * 4 + 2 * 4 + 2 * 8) + 4 * (2 * 4 + 4 + 1) == 212
    assert activations(sizes, 10) == 2120
    assert activations(sizes, 10, recompute=True) == 10 * (4 * 4 + 212)
    assert states(sizes)["optimizer"] == 8 * sizes.parameters == 8 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("recipe", [BERT, LLAMA, GROUPED])
def test_what_a_layer_keeps_is_exact(recipe, dropout, half):
    few, many = made(recipe, 1, dropout), made(recipe, 4, dropout)
    (base, lent), (total, lent_by_all) = measured(few, half), measured(many, half)
    tokens, sizes = ROWS * LENGTH, Sizes.of(many)
    assert total - base == 3 * tokens * sizes.kept(half)
    assert abs(total / activations(sizes, tokens, half) - 1) < 0.12  # the rest: the embedding and the last norm
    if half:
        assert lent_by_all - lent == 3 * 2 * sizes.products / 4
        assert states(sizes, half=True)["weights in use"] == 2 * sizes.products


@pytest.mark.parametrize("recipe", [BERT, LLAMA])
def test_recomputed_layers_keep_their_input(recipe):
    base, total = (measured(parallel.wrap(made(recipe, n), activations="full"))[0] for n in (1, 4))
    more = [activations(sizes, ROWS * LENGTH, recompute=True) for sizes in (Sizes.of(made(recipe, n)) for n in (1, 4))]
    assert total - base == more[1] - more[0] == 3 * 4 * 48 * ROWS * LENGTH


def test_parameters_are_exact_also_where_nothing_is_held():
    for recipe, tie in ((BERT, True), (LLAMA, False), (GROUPED, True)):
        with torch.device("meta"):
            model = made(recipe, 3, tie=tie)
        sizes, real = Sizes.of(model), made(recipe, 3, tie=tie)
        assert sizes.parameters == sum(p.numel() for p in real.parameters())
        assert sizes.in_layers == sum(p.numel() for p in real.encoder.layers.parameters())
        assert sizes == Sizes.of(real) and sizes.head == 90 * 48
    shared = BERT | {"encoder": {"transformer": BERT["encoder"]["transformer"] | {"shared": True}}}
    assert (Sizes.of(made(shared, 3)).layers, Sizes.of(made(shared, 3)).stored) == (3, 1)


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adafactor"])
def test_moments_are_those_of_the_optimizer(optimizer):
    model = made(BERT)
    matrices = matrices_of_layers(model)
    rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    make = {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor}.get(optimizer)
    chosen = make(model.parameters()) if make else Muon(matrices, [{"params": rest}], 0.1, (0.9, 0.95), 0.0)
    sum(p.sum() for p in model.parameters()).backward()
    chosen.step()
    held = sum(x.nbytes for state in chosen.state.values() for x in state.values() if x.ndim)
    expected = states(Sizes.of(model), optimizer)["optimizer"]
    assert held == expected if optimizer != "adafactor" else held < 8 * Sizes.of(model).parameters / 10


def test_ranks_share():
    sizes = Sizes.of(made(BERT, 4))
    alone, shared = states(sizes), states(sizes, ranks=4)
    assert all(shared[name] == alone[name] / 4 for name in ("weights", "gradients", "optimizer"))
    assert alone["weights in use"] == 0 and shared["weights in use"] == 2 * 4 * sizes.in_layers / 4


def test_other_models_are_refused():
    with pytest.raises(LookupError, match="one transformer encoder"):
        Sizes.of(assemble(BERT | {"encoder": {"gru": {"layers": 1}}}))
