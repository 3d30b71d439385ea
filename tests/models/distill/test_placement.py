"""A teacher whose layers come and go, or are shared among ranks, says what a whole one says."""

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from models import build, parallel
from models.components._model import assemble
from models.distill import _placement
from models.distill._distillation import Distillation, see
from models.distill._divergence import Divergence, word_divergence
from models.distill._objective import Objective
from models.distill._placement import offload, shard
from models.distill._student import new_student, shape_of, student_recipe
from models.distill._words import Words
from models.fit import fit
from tests.models.test_parallel import on_two_ranks

RECIPE = {"width": 8, "vocabulary": 30, "dropout": 0.0, "std": 0.4, "target": {"mlm": {}},
          "embedding": {"word": {}, "position": {"length": 16}},
          "encoder": {"transformer": {"layers": 4, "heads": 2, "inner": 16}}}  # fmt: skip
WANTED = {"embedding": [], "hidden": [0, 3], "query": [2], "scores": [1], "logits": []}


def teacher(**more):
    torch.manual_seed(3)
    return assemble(RECIPE | more).eval().requires_grad_(False)


def batch(rows=4):
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(6) < torch.tensor([6, 3, 5, 2])[:rows, None]
    ids = torch.randint(30, (rows, 6), generator=generator)
    return {"ids": ids, "mask": mask, "labels_mlm": ids.where(mask, -100)}


@torch.no_grad()
def told(model) -> dict[str, torch.Tensor]:
    seen = see(model, WANTED, batch(), {})
    return {"embedding": seen.embedding, "first": seen.hidden[0], "last": seen.hidden[3], "query": seen.query[2],
            "scores": seen.scores[1], "logits": seen.logits.tensor()}  # fmt: skip


def same(one, two):
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_layers_come_one_at_a_time(monkeypatch):
    whole, model = told(teacher()), teacher()
    layers = list(model.encoder.layers.parameters())
    home = {p: p.data_ptr() for p in layers}
    away = lambda: sum(p.nbytes for p in layers if p.data_ptr() != home[p])
    most, copies = 0, 0

    def copy(tensor, device):
        nonlocal most, copies
        most, copies = max(most, away() + tensor.nbytes), copies + 1
        return tensor.clone()

    monkeypatch.setattr(_placement, "_copy", copy)
    same(told(offload(model, "cpu")), whole)
    assert most == sum(p.nbytes for p in model.encoder.layers[0].parameters())  # of four
    assert copies == len(layers) and away() == 0  # all have left
    same(told(model), whole)  # again


def test_a_layer_leaves_also_when_it_fails(monkeypatch):
    model = offload(teacher(), "cpu")
    home = model.encoder.layers[1].attention.query.weight.data_ptr()
    monkeypatch.setattr(_placement, "_copy", lambda tensor, device: tensor.clone())
    monkeypatch.setattr(model.encoder.layers[1].attention, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        told(model)
    assert model.encoder.layers[1].attention.query.weight.data_ptr() == home


def test_a_shared_layer_is_offloaded_too():
    how = {"encoder": {"transformer": RECIPE["encoder"]["transformer"] | {"shared": True}}}
    same(told(offload(teacher(**how), "cpu")), told(teacher(**how)))


@pytest.mark.parametrize("place", [offload, shard])
def test_what_cannot_be_placed_is_refused(place):
    with pytest.raises(ValueError, match="Linear has no layers"):
        place(torch.nn.Linear(1, 1), "cpu")
    model = teacher()
    model.encoder.layers[1].attention.query.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="only a frozen teacher's layers are placed, but 1 tensors are to be trained"):
        place(model, "cpu")


def test_one_rank_keeps_all():
    same(told(shard(teacher(), "cpu")), told(teacher()))


# ---------------------------------------------------------------- two ranks


def student(model) -> Distillation:
    small = student_recipe(RECIPE, 2)
    torch.manual_seed(8)
    method = build("distill", "distilbert", shape_of(small), shape_of(RECIPE))
    return Distillation(new_student(small, "random", {}), model, Objective({"distilbert": method}))


def trained(model, kind: str) -> dict[str, torch.Tensor]:
    """Losses and weights of four steps of four rows, shared by the ranks."""
    rows = 4 // parallel.world()
    own = slice(parallel.rank() * rows, (parallel.rank() + 1) * rows)
    steps = [[{name: value[own] for name, value in batch().items()}]] * 4
    wrapped = parallel.wrap(student(model), kind)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05)
    losses = torch.stack([term["loss"] for term in fit(wrapped, steps, optimizer)])
    return parallel.full_state(wrapped) | {"losses": losses}


def _sharded(folder):
    model = shard(teacher(), "cpu")
    kinds = {name: type(p).__name__ for name, p in model.named_parameters()}
    assert {kind for name, kind in kinds.items() if ".layers." in name} == {"DTensor"}
    assert kinds["targets.mlm.head.weight"] == "Parameter"
    for kind in ("ddp", "fsdp"):
        found, expected = trained(model, kind), trained(teacher(), kind)
        assert expected["losses"][-1] < expected["losses"][0]
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n} {m}")
        kinds = {type(p).__name__ for p in model.encoder.layers.parameters()}
        assert kinds == {"DTensor"}  # nothing that was gathered is kept


def test_a_shared_teacher_beside_a_student_on_two_ranks(tmp_path):
    on_two_ranks(_sharded, tmp_path)


def _words_apart(folder):
    """Each rank knows one of two words. p = (0, 1), s = (0, 0): the gradient is p_s - p_t = (1/2, -1/2)."""
    logits = torch.zeros(1, 1, requires_grad=True)
    said = torch.tensor([[-1e4 if parallel.rank() == 0 else 0.0]])
    loss = word_divergence(logits, said, Divergence(), group=dist.group.WORLD)
    loss.backward()
    if parallel.rank() == 1:  # a head in halves, also of unlike size, is the whole one
        save_file({"value": loss.detach()[None], "slope": logits.grad}, folder / "one.safetensors")
    else:
        save_file({"slope": logits.grad}, folder / "zero.safetensors")
    torch.manual_seed(0)
    state, weight, other = (torch.randn(n, 4, dtype=torch.float64) for n in (5, 7, 7))
    part = slice(0, 3) if parallel.rank() == 0 else slice(3, 7)
    whole, mine = weight.clone().requires_grad_(), weight[part].clone().requires_grad_()
    for words, group in ((whole, None), (mine, dist.group.WORLD)):
        theirs = Words(state + 1, other if group is None else other[part])
        word_divergence(Words(state, words), theirs, Divergence(temperature=2.0), group=group).backward()
    torch.testing.assert_close(mine.grad, whole.grad[part], rtol=0, atol=1e-12)
    share = (state @ weight.T / 2).softmax(-1) - ((state + 1) @ other.T / 2).softmax(-1)  # p_s - p_t
    torch.testing.assert_close(mine.grad, (2 * share / 5).T[part] @ state, rtol=0, atol=1e-12)


def test_words_shared_by_two_ranks_have_the_gradient_by_hand(tmp_path):
    on_two_ranks(_words_apart, tmp_path)
    one, zero = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "zero"))
    assert one["value"].item() == pytest.approx(0.6931472)
    assert (zero["slope"].item(), one["slope"].item()) == pytest.approx((0.5, -0.5))
