"""Two ranks on gloo are one process; activation checkpointing and compilation change no number."""

import socket
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from models import parallel
from models.fit import fit
from tests._forked import ended

WIDTH, STEPS = 6, 4


class Block(nn.Module):
    def __init__(self, dropout: float):
        super().__init__()
        self.inner, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden):
        attended = nn.functional.scaled_dot_product_attention(hidden, hidden, hidden)
        return hidden + self.dropout(torch.relu(self.inner(self.norm(attended))))


class Stack(nn.Module):
    """A tied head over blocks; loss = sum of cross-entropies / their number."""

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.word = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList(Block(dropout) for _ in range(2))
        self.head = nn.Linear(WIDTH, 11)
        self.head.weight = self.word.weight
        self.register_buffer("scale", torch.tensor([2.0]))
        nn.init.normal_(self.word.weight, std=0.3)

    def counts(self, ids, labels):
        return {"lm": (labels >= 0).sum().float()}

    def forward(self, ids, labels, counts=None):
        hidden = self.word(ids) * self.scale
        for layer in self.layers:
            hidden = layer(hidden)
        loss = nn.functional.cross_entropy(self.head(hidden).flatten(0, 1).float(), labels.flatten(), reduction="sum")
        loss = loss / (counts or self.counts(ids, labels))["lm"]
        return loss, {"lm": loss}


def batches() -> list[dict]:
    """Global batches of 8 rows; the first rows have few labels, so that ranks differ."""
    random = torch.Generator().manual_seed(1)
    made = []
    for _ in range(STEPS):
        ids = torch.randint(11, (8, 5), generator=random)
        made.append({"ids": ids, "labels": ids.roll(-1, 1).where(torch.arange(8)[:, None] * 5 > 17, -100)})
        made[-1]["labels"][0, 0] = 3
    return made


def share(batch: dict, micro: int) -> list[dict]:
    """This rank's rows, in micro-batches."""
    rows = 8 // parallel.world()
    own = {name: value[parallel.rank() * rows : (parallel.rank() + 1) * rows] for name, value in batch.items()}
    return [{name: value[at : at + micro] for name, value in own.items()} for at in range(0, rows, micro)]


def trained(kind: str, micro: int = 8, precision: torch.dtype | None = None, activations: str = "none"):
    model = parallel.wrap(Stack(), kind, precision, activations)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    steps = (share(batch, micro) for batch in batches())
    terms = list(fit(model, steps, optimizer, clip=0.05, precision=precision))  # the clip acts at every step
    stack = lambda name: torch.stack([term[name] for term in terms])
    return parallel.full_state(model) | {"loss": stack("loss"), "norm": stack("gradient_norm")}, model


def on_two_ranks(work, folder: Path) -> None:
    """Run `work(folder)` on two ranks, forked processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert ended(*(partial(_rank, work, folder, number, port) for number in range(2))) == [0, 0]


def _rank(work, folder: Path, number: int, port: int) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    work(folder)
    dist.destroy_process_group()


def _every_way(folder: Path) -> None:
    ways = {
        "ddp": {"kind": "ddp"},
        "ddp_micro": {"kind": "ddp", "micro": 3},
        "fsdp": {"kind": "fsdp"},
        "fsdp_micro": {"kind": "fsdp", "micro": 1, "activations": "selective"},
        "fsdp_bfloat16": {"kind": "fsdp", "precision": torch.bfloat16},
    }
    for name, way in ways.items():
        found, model = trained(**way)
        sharded = [type(p).__name__ for p in model.parameters()]
        assert set(sharded) == {"DTensor"} if "fsdp" in name else "DTensor" not in sharded
        again = parallel.wrap(Stack(), way["kind"])
        parallel.load_state(again, {key: value for key, value in found.items() if key not in ("loss", "norm")})
        for key, value in parallel.full_state(again).items():
            assert torch.equal(value, found[key]), key
        if parallel.rank() == 0:
            save_file(found, folder / f"{name}.safetensors")

    scaled = Stack()
    scaled.factor = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match="first dimension, which factor does not have; use ddp"):
        parallel.wrap(scaled, "fsdp")


def test_two_ranks_equal_one_process(tmp_path):
    on_two_ranks(_every_way, tmp_path)
    expected, _ = trained("none")
    assert expected["norm"].min() > 0.05  # or nothing would be clipped
    for name in ("ddp", "ddp_micro", "fsdp", "fsdp_micro"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(
                found[key], value, rtol=1e-6, atol=1e-6, msg=lambda m, k=key, n=name: f"{n} {k} {m}"
            )
    half = load_file(tmp_path / "fsdp_bfloat16.safetensors")
    assert half["word.weight"].dtype == torch.float32
    torch.testing.assert_close(half["loss"], expected["loss"], rtol=0.01, atol=0.0)
    assert not torch.equal(half["loss"], expected["loss"])


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("activations", ["full", "selective"])
def test_checkpointing_changes_no_gradient(activations, dropout):
    def gradients(how):
        model = parallel.wrap(Stack(dropout), activations=how)
        calls = []
        for block in model.layers:
            block.inner.register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(5)
        loss, _ = model(**batches()[0])
        loss.backward()
        return [p.grad for p in model.parameters()] + [loss.detach()], len(calls)

    kept, once = gradients("none")
    recomputed, twice = gradients(activations)
    assert (once, twice) == (2, 4)
    assert all(torch.equal(a, b) for a, b in zip(kept, recomputed, strict=True))


def test_what_selective_checkpointing_keeps():
    """Of one block, the products and attention run once, and full checkpointing runs them twice."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in parallel.KEPT:
                seen.append(func)
            return func(*args, **(kwargs or {}))

    found = {}
    for activations in ("none", "selective", "full"):
        seen: list = []
        block = Block(0.0)
        parallel.wrap(nn.ModuleDict({"layers": nn.ModuleList([block])}), activations=activations)
        with Count():
            block(torch.randn(2, 5, WIDTH, requires_grad=True)).sum().backward()
        found[activations] = len(seen)
    assert found["none"] == found["selective"] < found["full"]


def test_compiled_blocks_are_the_same():
    expected, _ = trained("none")
    model = parallel.wrap(Stack(), activations="full", compile="aot_eager")
    loss, _ = model(**batches()[0])
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"][0].item(), rel=1e-6)
    assert set(parallel.full_state(model)) == expected.keys() - {"loss", "norm"}


def test_blocks_are_found_once_and_outermost():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Module()])
    model.layers[0].layers = nn.ModuleList([nn.Linear(1, 1)])
    model.decoder = nn.Module()
    model.decoder.layers = nn.ModuleList([shared := nn.Linear(2, 2), shared])
    assert parallel.blocks(model) == [model.layers[0], shared]


def test_states_hold_tied_tensors_once_and_load_strictly():
    model = Stack()
    state = parallel.full_state(model)
    assert "head.weight" not in state
    assert state["scale"].item() == 2
    wrong = {key: value for key, value in state.items() if key != "scale"} | {"more": state["scale"]}
    before = model.word.weight.clone()
    with pytest.raises(ValueError, match=r"missing \['scale'\] \(1\), unknown \['more'\] \(1\)"):
        parallel.load_state(model, wrong | {"word.weight": before + 1})
    with pytest.raises(ValueError, match=r"other shape \['scale \(2,\) for \(1,\)'\]"):
        parallel.load_state(model, state | {"scale": torch.ones(2)})
    assert torch.equal(model.word.weight, before)
    parallel.load_state(model, state | {"word.weight": before + 1})
    assert torch.equal(model.head.weight, before + 1)


@pytest.mark.parametrize("wrong", [{"kind": "zero"}, {"activations": "some"}])
def test_unknown_names(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong.values()))):
        parallel.wrap(Stack(), **wrong)


def test_no_block_to_checkpoint():
    with pytest.raises(ValueError, match="Linear has no block"):
        parallel.wrap(nn.Linear(1, 1), activations="full")


def test_blocks_of_other_libraries_are_found_once():
    from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel, T5Config, T5Model

    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=3, n_embd=8, n_head=2, vocab_size=11))
    bloom = BloomForCausalLM(BloomConfig(n_layer=2, hidden_size=8, n_head=2, vocab_size=11))
    t5 = T5Model(T5Config(num_layers=2, num_decoder_layers=3, d_model=8, d_kv=4, num_heads=2, d_ff=8, vocab_size=11))
    assert [len(parallel.blocks(model)) for model in (gpt2, bloom, t5)] == [3, 2, 5]
