"""A run of the engine: killed, stopped, cut or spread over ranks in any way, it is the unbroken run."""

import os
import signal
import socket
import time
from functools import partial

import pytest
import torch
from _tiny import MadeUp, Tiny
from safetensors.torch import load_file, save_file

from models import parallel
from tasks import checkpoint, engine
from tasks.engine import DataChanged, Diverged, Engine, HeldOut, launched, make_optimizer, run
from tests._forked import ended, forked

SETTINGS = {
    "steps": 14,
    "batch": 8,
    "lr": 0.02,
    "warmup": 2,
    "schedule": "wsd",
    "checkpoint_steps": 3,
    "evaluate_steps": 4,
    "seed": 3,
}


def trained(checkpoints=None, source=None, model=None, held=True, **settings):
    """(weights, run) of the tiny model; `settings` over SETTINGS."""
    settings = Engine.read(SETTINGS | settings)
    model = model or Tiny(dropout=0.3)
    evaluate = HeldOut(MadeUp(11, seed=9), settings) if held else None
    done = run(model, source or MadeUp(), settings, evaluate, checkpoints)
    return parallel.full_state(model), done


def without_clock(curve: list[dict]) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "tokens_per_second")} for row in curve
    ]


def same(one, two) -> None:
    """Equal weights, curve and counters, bit for bit."""
    assert one[0].keys() == two[0].keys()
    for name, value in one[0].items():
        assert torch.equal(value, two[0][name]), name
    assert without_clock(one[1].curve) == without_clock(two[1].curve)
    assert one[1].tokens == two[1].tokens
    assert one[1].best_step == two[1].best_step


@pytest.fixture(scope="module")
def unbroken():
    return trained()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kill_at", [1, 4, 8, 13])
def test_killed_at_a_step(tmp_path, unbroken, kill_at):
    class Dies(MadeUp):
        def rows(self, indices):
            if list(indices)[0] == kill_at * 8:
                die()
            return super().rows(indices)

    assert ended(lambda: trained(tmp_path, source=Dies())) == [-signal.SIGKILL]
    resumed = trained(tmp_path)
    assert 0 <= resumed[1].resumed_at <= kill_at
    assert resumed[1].resumed_at % 3 == 0
    same(resumed, unbroken)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
@pytest.mark.parametrize("write", [1, 3])
def test_killed_while_writing_a_checkpoint(tmp_path, unbroken, monkeypatch, moment, write):
    """Before the new file is on disk, and before it has its name."""
    real, calls = getattr(os, moment), []

    def dies(*args):
        calls.append(args)
        if len(calls) == write:
            die()
        return real(*args)

    def work():
        monkeypatch.setattr(checkpoint.os, moment, dies)
        trained(tmp_path)

    assert ended(work) == [-signal.SIGKILL]
    resumed = trained(tmp_path)
    assert resumed[1].resumed_at == 3 * (write - 1)
    same(resumed, unbroken)


def test_killed_at_a_random_moment(tmp_path, unbroken):
    class Slow(MadeUp):
        def rows(self, indices):
            time.sleep(0.01)
            return super().rows(indices)

    random = torch.Generator().manual_seed(os.getpid())
    process = forked(lambda: trained(tmp_path, source=Slow()))
    process.start()
    time.sleep(0.02 + 0.3 * torch.rand((), generator=random).item())
    process.kill()
    process.join()
    same(trained(tmp_path), unbroken)


def test_corrupt_newest_checkpoint(tmp_path, unbroken, capsys):
    trained(tmp_path)
    newest = max(tmp_path.glob("*.safetensors"))
    assert newest.name == "step-000000014.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    resumed = trained(tmp_path)
    assert resumed[1].resumed_at == 12
    assert f"{newest} is corrupt" in capsys.readouterr().err
    same(resumed, unbroken)


def test_a_finished_run_is_not_trained_again(tmp_path, unbroken):
    trained(tmp_path)
    source = MadeUp()
    again = trained(tmp_path, source=source)
    assert again[1].resumed_at == 14
    assert max(source.seen) < 8  # the plan looks at the first rows; no step was made
    same(again, unbroken)


def test_sigterm_finishes_the_step_and_the_next_run_continues(tmp_path, unbroken, capsys):
    class Asked(MadeUp):
        def rows(self, indices):
            if list(indices)[0] == 7 * 8:  # prepared while step 6 (from 0) is computed, or just before
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.05)
            return super().rows(indices)

    before = signal.getsignal(signal.SIGTERM)
    _, done = trained(tmp_path, source=Asked())
    assert done.stopped
    assert 6 <= done.step <= 8
    assert f"stopped by SIGTERM after step {done.step} of 14" in capsys.readouterr().out
    assert (tmp_path / "stopped.json").is_file()
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = trained(tmp_path)
    assert resumed[1].resumed_at == done.step
    assert not (tmp_path / "stopped.json").exists()
    same(resumed, unbroken)


class Breaks(Tiny):
    """Its loss is not a number once it sees a batch of the given rows."""

    def __init__(self, at: int):
        super().__init__(dropout=0.3)
        self.left = at

    def forward(self, **batch):
        loss, terms = super().forward(**batch)
        self.left -= self.training
        return loss * (float("nan") if self.left == 0 else 1.0), terms


def test_nan_stops_names_step_and_rows_and_keeps_the_last_good_checkpoint(tmp_path, unbroken):
    with pytest.raises(Diverged) as caught:
        trained(tmp_path, model=Breaks(8))
    said = str(caught.value)
    assert "the loss is nan at step 8, rows 56..63 of the source" in said
    assert "mlm " in said
    assert "the last good checkpoint is" in said
    assert max(tmp_path.glob("*.safetensors")).name == "step-000000006.safetensors"
    same(trained(tmp_path), unbroken)
    with pytest.raises(Diverged, match="at step 1, rows 0..7 .* there is no checkpoint yet"):
        trained(model=Breaks(1))


def test_an_endless_gradient_never_reaches_a_checkpoint(tmp_path):
    class Steep(Tiny):
        def forward(self, **batch):
            loss, terms = super().forward(**batch)
            return loss + (self.pair.bias.sum() - self.pair.bias.sum()).abs().sqrt(), terms  # finite, slope infinite

    with pytest.raises(Diverged, match="the gradient is nan at step 1"):
        trained(tmp_path, model=Steep(), clip=None)
    assert not list(tmp_path.glob("*.safetensors"))


def test_other_data_or_settings_are_refused(tmp_path):
    trained(tmp_path)
    with pytest.raises(DataChanged, match=r"made up 20 0 \(20 rows\), this run has made up 21 0 \(21 rows\)"):
        trained(tmp_path, source=MadeUp(21))
    with pytest.raises(ValueError, match=r"other settings: lr 0.02 -> 0.03, seed 3 -> 4; take them back"):
        trained(tmp_path, lr=0.03, seed=4)
    trained(tmp_path, micro=2, checkpoint_steps=1)  # how it is cut may change
    with pytest.raises(ValueError, match=r"of another model: missing \['layers.2"):
        trained(tmp_path, model=Tiny(layers=3))


@pytest.mark.parametrize("settings", [{"micro": 3}, {"micro": 1}, {"activations": "full"}])
def test_loss_and_weights_do_not_depend_on_how_a_step_is_cut(settings):
    """Without dropout; micro-batches of 8 rows in 3, 3 and 2 have other paddings and label counts."""
    whole, cut = trained(model=Tiny(dropout=0.0)), trained(model=Tiny(dropout=0.0), **settings)
    for name, value in whole[0].items():
        torch.testing.assert_close(cut[0][name], value, rtol=1e-5, atol=1e-5)
    assert cut[1].tokens == whole[1].tokens
    assert [row["loss"] for row in cut[1].curve[1:]] == pytest.approx(
        [row["loss"] for row in whole[1].curve[1:]], rel=1e-5
    )


def test_padding_changes_neither_loss_nor_token_count():
    few, many = (trained(source=MadeUp(padding=padding), model=Tiny()) for padding in (0, 7))
    assert few[1].tokens == many[1].tokens == sum(int(MadeUp().rows([i])["mask"].sum()) for i in range(14 * 8))
    assert [row["loss"] for row in many[1].curve[1:]] == pytest.approx(
        [row["loss"] for row in few[1].curve[1:]], rel=1e-5
    )


def two_ranks(folder, *calls: dict) -> None:
    """`trained(**call)` for each call on two ranks, as torchrun would start them; rank 0 saves the weights."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": str(port)}  # fmt: skip
        with launched() as device:
            assert device == "cpu"
            for index, call in enumerate(calls):
                source = MadeUp()
                weights, done = trained(source=source, model=Tiny(dropout=call.pop("dropout", 0.0)), **call)
                # the plan looked at 8 rows before the first step
                counters = {"seen": torch.tensor(source.seen[8:]), "tokens": torch.tensor(done.tokens),
                            "curve": torch.tensor([row["heldout_loss"] for row in done.curve])}  # fmt: skip
                save_file(weights | counters, folder / f"{index}-{number}.safetensors")

    assert ended(partial(rank, 0), partial(rank, 1)) == [0, 0]


def test_two_ranks_are_one_and_a_run_goes_on_with_another_number(tmp_path):
    """DDP, DDP with dropout and equal micro-batches, FSDP2; then FSDP2 on two ranks, one rank, DDP on two ranks."""
    half = {"checkpoints": tmp_path / "moved", "checkpoint_steps": 5}
    two_ranks(
        tmp_path,
        {"parallel": "ddp"},
        {"parallel": "ddp", "micro": 2, "dropout": 0.3},
        {"parallel": "fsdp", "micro": 3, "activations": "selective"},
        half | {"parallel": "fsdp"},
    )
    plain = trained(model=Tiny())
    dropped = trained(micro=2)
    for index, expected in enumerate((plain, dropped, plain, plain)):
        found = [load_file(tmp_path / f"{index}-{number}.safetensors") for number in range(2)]
        for name, value in expected[0].items():
            torch.testing.assert_close(found[0][name], value, rtol=1e-6, atol=1e-6)
            assert torch.equal(found[0][name], found[1][name])
        assert found[0]["tokens"].item() == expected[1].tokens
        curve = [row["heldout_loss"] for row in expected[1].curve]
        assert found[0]["curve"].tolist() == pytest.approx(curve, rel=1e-6)
        seen = [sorted({*found[number]["seen"].tolist()}) for number in range(2)]
        assert sorted(seen[0] + seen[1]) == list(range(14 * 8))  # every row once, on one of the two
        assert seen[0] == [row for row in range(14 * 8) if row % 8 < 4]

    last = max((tmp_path / "moved").glob("*.safetensors"))
    last.unlink()  # as if killed between steps 10 and 14
    alone, done = trained(**half, parallel="fsdp", model=Tiny())
    assert done.resumed_at == 10
    for name, value in plain[0].items():
        torch.testing.assert_close(alone[name], value, rtol=1e-6, atol=1e-6)
    max((tmp_path / "moved").glob("*.safetensors")).unlink()
    two_ranks(tmp_path, half | {"parallel": "ddp"})
    for name, value in plain[0].items():
        torch.testing.assert_close(load_file(tmp_path / "0-0.safetensors")[name], value, rtol=1e-6, atol=1e-6)


def test_a_batch_that_ranks_cannot_share(monkeypatch):
    monkeypatch.setattr(parallel, "world", lambda: 3)
    with pytest.raises(ValueError, match="a batch of 8 rows cannot be shared evenly by 3 ranks"):
        run(Tiny(), MadeUp(), Engine.read(SETTINGS))


def test_held_out_loss_by_hand():
    """Over all labels of all rows, not a mean over batches; the same for every cut."""
    model, source = Tiny().eval(), MadeUp(11, seed=9)
    loss, terms = model(**source.rows(range(11)))
    for micro in (None, 1, 4):
        found = HeldOut(source, Engine(batch=8, micro=micro))(model)
        assert found["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert found["mlm_correct"] == pytest.approx(terms["mlm_correct"].item(), rel=1e-5)
        assert found["perplexity"] == pytest.approx(terms["mlm"].exp().item(), rel=1e-4)
    assert HeldOut(source, Engine(evaluate_rows=5)).rows == 5
    with pytest.raises(ValueError, match="held-out source has 0 rows"):
        HeldOut(MadeUp(0), Engine())


def test_patience_ends_the_run_with_the_best_weights(tmp_path):
    scores, seen = iter([0.1, 0.5, 0.9, 0.8, 0.7, 0.95]), []

    def evaluate(model):
        seen.append(parallel.full_state(model))
        return {"score": next(scores)}

    def go(steps_before_kill=None):
        model = Tiny()
        done = run(model, MadeUp(), Engine.read(SETTINGS | {"patience": 2, "evaluate_steps": 2}), evaluate, tmp_path)
        return parallel.full_state(model), done

    weights, done = go()
    assert (done.best_step, done.step) == (4, 8)
    assert all(torch.equal(weights[name], seen[2][name]) for name in weights)
    assert not torch.equal(weights["word.weight"], seen[4]["word.weight"])
    again, done = go()  # gave up already: no step more, and no evaluation
    assert done.step == done.resumed_at == 8
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_decay_spares_norms_biases_and_tables(optimizer):
    made, told = make_optimizer(Tiny(), Engine(optimizer=optimizer, weight_decay=0.3, lr=0.02))
    decayed, spared = made.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert sorted(p.shape for p in decayed["params"]) == [(2, 8), (8, 16), (8, 16), (16, 8), (16, 8)]
    assert "weight decay 0.3 on 5 tensors (528 numbers), none on 11 tensors (289 numbers)" in told
    assert isinstance(made, torch.optim.AdamW if optimizer == "adamw" else torch.optim.Adafactor)
    if optimizer == "adamw":
        assert decayed["betas"] == (0.9, 0.95)


def test_muon_needs_layers_and_one_rate():
    with pytest.raises(ValueError, match="Linear has no layers with matrices to train; set optimizer: adamw"):
        make_optimizer(torch.nn.Linear(2, 2), Engine(optimizer="muon"))
    made = Tiny()
    made.parameter_groups = lambda rate, decay: [{"params": list(made.parameters())}]
    with pytest.raises(ValueError, match="Tiny learns its parts at rates of their own"):
        make_optimizer(made, Engine(optimizer="muon"))


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
def test_other_optimizers_resume_too(tmp_path, optimizer):
    whole = trained(optimizer=optimizer)
    source = MadeUp()
    source.rows = lambda indices, rows=source.rows: rows(indices) if list(indices)[0] != 64 else 1 / 0
    with pytest.raises(ZeroDivisionError):
        trained(tmp_path, source=source, optimizer=optimizer)
    resumed = trained(tmp_path, optimizer=optimizer)
    assert resumed[1].resumed_at == 6
    same(resumed, whole)


def test_rates_count_waiting(capsys):
    class Slow(MadeUp):
        def rows(self, indices):
            time.sleep(0.1)
            return super().rows(indices)

    _, done = trained(source=Slow())
    assert done.wait_share > 0.5
    assert 0 < done.tokens_per_second < done.tokens / (3 * 0.1)
    assert done.mfu is None  # no peak is known for a CPU
    out = capsys.readouterr().out
    assert "14 steps x 8 rows = 112 rows, 5.60 epochs of 20" in out
    assert "5 checkpoints, two kept" in out
    assert "MFU" not in out


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"step": 3}, "no setting step; it has: steps, batch, micro"),
        ({"steps": 0}, "steps must be a whole number >= 1, got 0"),
        ({"lr": "1e-3"}, "write 1.0e-3, not 1e-3"),
        ({"optimizer": "sgd"}, "adamw, muon, adafactor, got 'sgd'"),
        ({"parallel": "fsdp", "optimizer": "adafactor"}, "adafactor needs whole matrices"),
        ({"parallel": "fsdp", "optimizer": "muon"}, "muon needs whole matrices"),
        ({"schedule": "cosin"}, "closest: cosine"),
        ({"betas": [0.9]}, "betas must be two numbers"),
        ({"schedule": {"constant": {}}, "warmup": 3}, "constant has no setting warmup"),
        ({"precision": "float16", "micro": 0}, "micro must be .* precision must be one of float32, bfloat16"),
    ],
)
def test_settings_that_cannot_work(wrong, said):
    with pytest.raises((ValueError, LookupError), match=said):
        Engine.read(wrong)


@pytest.mark.parametrize("micro", [None, 1, 3])
def test_every_number_of_ranks_sees_the_same_rows(monkeypatch, micro):
    """1, 2 and 4 ranks: the rows of step 2, rank after rank, are rows 16..23, in portions of `micro` at most."""
    settings = Engine(steps=3, batch=8, micro=micro)
    for world in (1, 2, 4):
        monkeypatch.setattr(parallel, "world", lambda world=world: world)
        found, portions = [], []
        for rank in range(world):
            monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
            parts = engine._Feed(MadeUp(), settings, 0, "cpu").micro_batches(2)
            found += [row for part in parts for row in part]
            portions += [len(part) for part in parts]
        assert found == list(range(16, 24))
        assert max(portions) <= (micro or 8 // world)


def test_bfloat16_learns_what_float32_learns():
    losses = {
        precision: trained(model=Tiny(), steps=100, evaluate_steps=100, precision=precision)[1].curve[-1][
            "heldout_loss"
        ]
        for precision in ("float32", "bfloat16")
    }
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.01)
    assert losses["bfloat16"] != losses["float32"]
