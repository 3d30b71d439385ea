"""Continued pre-training: killed, cut or spread over ranks it is one run; every base; a folder that anybody loads."""

import json
import math
import os
import signal
import socket
from pathlib import Path

import polars as pl
import pytest
import torch
from _bilingual import SOURCES, base, byte_tokenizer, ingested
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.language._causal import Causal
from tasks import continue_pretraining as module
from tasks.base import base as note_base
from tasks.base import load_causal
from tasks.continue_pretraining import continue_pretraining, flops_of_causal, main
from tasks.extend_vocabulary import extend_vocabulary
from tasks.mixture import Mixture, MixtureError
from tasks.settings import SettingsError
from tests._forked import ended

TRAINING = {"steps": 8, "batch": 8, "lr": 5.0e-3, "evaluate_steps": 4, "evaluate_rows": 8, "checkpoint_steps": 2,
            "seed": 3}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = ingested(tmp_path_factory.mktemp("continued"))
    byte_tokenizer(folder, folder / "tokenizer")
    start = base("gpt2", folder / "tokenizer", folder / "plain", length=96)
    extend_vocabulary({"language": "zh", "characters": 20}, start, [folder / "texts"], folder / "gpt2")
    base("llama", folder / "tokenizer", folder / "llama", length=96)
    return folder


def settings(training=None, **more) -> dict:
    entry = {"sources": SOURCES, "sampler": {"grow": 100}, "length": 96, "training": TRAINING | (training or {})}
    return {"zh": entry | more}


def trained(place: Path, out: Path, start: str = "gpt2", training=None, checkpoints: Path | None = None, **more):
    return continue_pretraining(settings(training, **more), "zh", place / start, place, out,
                                checkpoints or out.with_name(f"{out.name}-checkpoints"))  # fmt: skip


def weights(out: Path) -> dict:
    return load_file(out / "model" / "model.safetensors")


def same(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
    assert (one / "metrics.json").read_bytes() == (other / "metrics.json").read_bytes()
    assert (one / "mix.csv").read_bytes() == (other / "mix.csv").read_bytes()


@pytest.fixture(scope="module")
def unbroken(place) -> Path:
    return trained(place, place / "unbroken")


@pytest.fixture
def opened(place, monkeypatch):
    """Mixtures as they are opened here, for forked children: polars must not start its threads again there."""

    def patch(start: str) -> None:
        sources = {name: entry | {"data": place / entry["data"]} for name, entry in SOURCES.items()}
        made = {held: module.open_mixture(sources, {"grow": 100}, module.model_of(place / start), 96, 3, held)
                for held in (False, True)}  # fmt: skip
        monkeypatch.setattr(module, "open_mixture", lambda *given, heldout, cache: made[heldout])

    return patch


def test_a_run_and_its_folder(place, unbroken):
    assert sorted(path.name for path in unbroken.iterdir()) == [
        "curve.csv", "curve.png", "metrics.json", "mix.csv", "mix.png", "model", "run.json"]  # fmt: skip
    found = json.loads((unbroken / "metrics.json").read_text())
    held, export = found["heldout"], found["export"]
    assert export == {"equal": True, "max_difference": 0.0}
    total = sum(held[f"tokens_{name}"] for name in SOURCES)
    assert sum(held[f"loss_{name}"] * held[f"tokens_{name}"] for name in SOURCES) / total == pytest.approx(held["lm"])
    assert held["perplexity"] == pytest.approx(math.exp(held["lm"]))
    curve, mix = pl.read_csv(unbroken / "curve.csv"), pl.read_csv(unbroken / "mix.csv")
    assert curve["step"].to_list() == mix["step"].to_list() == [0, 4, 8]
    for name in SOURCES:
        assert curve[f"heldout_loss_{name}"][-1] < curve[f"heldout_loss_{name}"][0]
        assert f"loss_{name}" in curve.columns
    assert mix["rows"].to_list() == [0, 32, 64] and mix["lambda"].is_sorted()
    shares = [mix[f"share_{name}"].to_list() for name in SOURCES]
    assert [sum(row) for row in zip(*shares, strict=True)] == pytest.approx([1.0] * 3)
    about = json.loads((unbroken / "run.json").read_text())
    assert about["steps"] == 8 and about["packed"] and about["chunked"] and about["sources"]["sft"]["too_long"] == 0
    assert about["tokens"] >= 0.9 * sum(mix[f"tokens_{name}"][-1] for name in SOURCES)
    tokenizer = AutoTokenizer.from_pretrained(unbroken / "model")
    model = AutoModelForCausalLM.from_pretrained(unbroken / "model")
    assert len(tokenizer) == model.config.vocab_size and tokenizer.tokenize("红") == ["红"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.generate(**tokenizer("I sell", return_tensors="pt"), max_new_tokens=2).shape[1] == 6
    assert not (place / "unbroken-checkpoints").exists()


def test_the_first_loss_is_the_bases(place, unbroken):
    """Nothing is lost on the way: before the first step the held-out loss is that of the base itself."""
    source = module.open_mixture({name: entry | {"data": place / entry["data"]} for name, entry in SOURCES.items()},
                                 {"grow": 100}, place / "gpt2" / "model", 96, 3, heldout=True)  # fmt: skip
    batch = source.rows(range(8))
    loss, _ = Causal(load_causal(place / "gpt2")).eval()(**batch)
    assert pl.read_csv(unbroken / "curve.csv")["heldout_lm"][0] == pytest.approx(loss.item(), rel=1e-5)


def test_a_base_from_outside_is_begun_from_in_place(place, unbroken, tmp_path):
    note_base(place / "gpt2" / "model", tmp_path / "base" / "outside")
    same(unbroken, trained(place, tmp_path / "out", start=tmp_path / "base" / "outside"))


@pytest.mark.parametrize("kill_at", [1, 5])
def test_killed_at_a_step(place, unbroken, tmp_path, opened, monkeypatch, kill_at):
    real = Mixture.rows

    def dies(self, indices):
        if list(indices)[0] == kill_at * 8 and self._count is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, indices)

    with monkeypatch.context() as patched:
        opened("gpt2")
        patched.setattr(Mixture, "rows", dies)
        assert ended(lambda: trained(place, tmp_path / "out")) == [-signal.SIGKILL]
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    assert bool(list((tmp_path / "out-checkpoints").rglob("*.safetensors"))) == (kill_at == 5)
    same(trained(place, tmp_path / "out"), unbroken)


@pytest.mark.parametrize(("start", "parallel"), [("gpt2", "ddp"), ("llama", "fsdp")])
def test_two_ranks_are_one(place, tmp_path, opened, start, parallel):
    """Without dropout: a row's own differs with the portion it comes in."""
    config = place / start / "model" / "config.json" if start == "gpt2" else place / start / "config.json"
    kept = config.read_text()
    config.write_text(json.dumps(json.loads(kept) | {f"{part}_pdrop": 0.0 for part in ("attn", "embd", "resid")}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def rank(number: int) -> None:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": port}  # fmt: skip
        trained(place, tmp_path / "two", start, {"steps": 4, "parallel": parallel})

    opened(start)
    assert ended(lambda: rank(0), lambda: rank(1)) == [0, 0]
    one = trained(place, tmp_path / "one", start, {"steps": 4})
    config.write_text(kept)
    whole, shared = weights(one), weights(tmp_path / "two")
    for name, value in whole.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4, msg=name)  # AdamW: rounding grows
    losses = [pl.read_csv(out / "curve.csv")["heldout_loss"].to_list() for out in (one, tmp_path / "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    about = [json.loads((out / "run.json").read_text()) for out in (one, tmp_path / "two")]
    assert about[0]["tokens"] == about[1]["tokens"] and about[0]["trained_on"] == about[1]["trained_on"]


@pytest.mark.parametrize("more", [{"activations": "full"}, {"micro": 3}])
def test_how_a_step_is_computed_changes_nothing(place, tmp_path, more):
    one, other = (trained(place, tmp_path / name, "llama", {"steps": 2, **training})
                  for name, training in (("one", {}), ("other", more)))  # fmt: skip
    for name, value in weights(one).items():
        torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_sigterm_stops_and_the_next_run_goes_on(place, unbroken, tmp_path, monkeypatch):
    real = Mixture.rows

    def asked(self, indices):
        if list(indices)[0] == 4 * 8 and self._count is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, indices)

    with monkeypatch.context() as patched:
        patched.setattr(Mixture, "rows", asked)
        assert trained(place, tmp_path / "out") is None
    same(trained(place, tmp_path / "out"), unbroken)


def test_a_model_without_packed_masks_and_a_start_of_ours(place, tmp_path):
    """BLOOM reads documents one by one; a folder of tasks/pretrain.py is a base like any other."""
    base("bloom", place / "tokenizer", place / "bloom")
    out = trained(place, tmp_path / "bloom", "bloom", {"steps": 2})
    about = json.loads((out / "run.json").read_text())
    assert not about["packed"] and about["chunked"] and about["family"] == "bloom"
    from tasks.pretrain import pretrain
    from tasks.tokens import tokens

    tokens(place / "tokenizer", place / "texts", tmp_path / "tokens")
    language = {"pretrain": {"llama": {"data": "texts", "length": 96, "training": {"steps": 1, "batch": 4},
                                       "size": "nano"}}}  # fmt: skip
    pretrain(language, "llama", tmp_path / "tokens", place / "tokenizer", place / "ours", tmp_path / "checkpoints")
    out = trained(place, tmp_path / "next", "ours", {"steps": 2})
    assert json.loads((out / "run.json").read_text())["family"] == "llama"


def test_flops_of_a_known_shape():
    """Llama-3-8B at 8,192 tokens: 5.791e10 a token."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                         num_attention_heads=32, num_key_value_heads=8)  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    causal = Causal.__new__(Causal)
    torch.nn.Module.__init__(causal)
    causal.model = model
    assert flops_of_causal(causal, 8192) == pytest.approx(5.791e10, rel=1e-3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"length": 128}, "has positions for 96 tokens"),
        ({"length": None}, "lacks length"),
        ({"sources": {}}, "lacks sources"),
        ({"mixture": {}}, "no setting mixture"),
        ({"sources": {"en": SOURCES["en"] | {"repeats": 0.1}}, "sampler": {"temperature": 1.0}}, "allow more repeats"),
        ({"sampler": {"anchors": {0: {"en": 2}, 1: {"en": 1}}}}, "sum to 1, not 2"),
        ({"sources": {"en": {"data": "texts", "kind": "text"}}, "sampler": {"preset": "two_stage"}}, "gives nothing"),
    ],
)
def test_settings_that_cannot_work(place, tmp_path, more, said):
    with pytest.raises(ValueError, match=said):
        trained(place, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_work(place, tmp_path):
    absent = SOURCES | {"zh": {"data": "texts", "kind": "text", "language": "fr"}}
    with pytest.raises(MixtureError, match="source zh is empty"):
        trained(place, tmp_path / "out", sources=absent)
    with pytest.raises(SettingsError, match="has no 'ja'; it has: zh"):
        continue_pretraining(settings(), "ja", place / "gpt2", place, tmp_path / "out", tmp_path / "checkpoints")
    assert not (tmp_path / "out").exists()


def test_the_command(place, tmp_path, capsys):
    (tmp_path / "params.yaml").write_text(json.dumps({"continued": settings({"steps": 1})}))
    main(f"{tmp_path}/params.yaml:continued", "zh", str(place / "llama"), str(place), str(tmp_path / "out"),
         str(tmp_path / "checkpoints"))  # fmt: skip
    said = capsys.readouterr()
    assert "export off by 0.0e+00" in said.out
    assert "on its way when the run ends; is sampler.grow meant for a longer one?" in said.err
