"""Reasoning into relevance, end to end: what is written, that pairs stay whole, that no reason is needed, resume."""

import _tuned
import polars as pl
import pytest
from _killed import continued, killed, same_weights
from safetensors.torch import load_file

from tasks import distill_relevance as module
from tasks.distill_relevance import Reasoned, distill_relevance
from tasks.files import read_json
from tasks.finetune import kind_of, load_start, rows_of
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError

TRAINING = {"steps": 8, "batch": 8, "lr": 3.0e-3, "evaluate_steps": 4, "seed": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """bert/, and data/: pairs of which every third has no reason."""
    root = tmp_path_factory.mktemp("relevance")
    (root / "bert").mkdir()
    _tuned.write_model(root / "bert", "bert")
    _tuned.write_examples(root / "data", "match", 60)
    file = root / "data/rows/train.parquet"
    train = pl.read_parquet(file)
    reasons = [
        None if n % 3 == 2 else "the colour and the brand are the same " * (1 + n % 2) for n in range(len(train))
    ]
    train.with_columns(pl.Series("reason", reasons)).write_parquet(file)
    return root


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


def go(made, out, checkpoints=None, data=None, **more):
    chosen = {"length": 64, "reasons": 12, "training": TRAINING, **more}
    return distill_relevance("pairs", chosen, made / "bert", data or made / "data", out, checkpoints)


def test_what_it_writes(made, tmp_path):
    metrics = go(made, out := tmp_path / "out", student={"layers": 1}, method={"weight": 0.5})
    assert {file.name for file in out.iterdir()} == {
        "model", "recipe.json", "run.json", "metrics.json", "predictions.parquet", "curve.csv", "extra",
    }  # fmt: skip
    assert metrics["export"]["equal"] and metrics["export"]["class"] == "BertForSequenceClassification"
    about, curve = read_json(out / "run.json"), pl.read_csv(out / "curve.csv")
    train = pl.read_parquet(made / "data/rows/train.parquet")
    assert about["reasons"] == len(train) - train["reason"].null_count() and about["reasons_cut"] > 0
    assert {"plain", "rich", "alignment"} <= set(curve.columns) and curve["heldout_loss"].is_finite().all()
    state = load_file(out / "model/model.safetensors")
    assert sum(tensor.numel() for tensor in state.values()) == about["parameters"]
    assert not [name for name in state if "layer.1." in name]


def test_it_answers_without_a_reason_and_may_teach(made, tmp_path):
    """dev has no reasons at all; the folder is one of a fine-tuning, so that others distil from it."""
    from tasks.teaching import Teacher

    go(made, tmp_path / "out")
    rows = rows_of(made / "data")
    assert "reason" not in rows["dev"].columns
    told = pl.read_parquet(tmp_path / "out/predictions.parquet")
    said = Teacher(tmp_path / "out", "pairs", 64).told(rows, "dev", None).answers.softmax(-1).max(-1).values
    assert told["probability"].head(len(rows["dev"])).to_list() == pytest.approx(said.tolist(), abs=1e-5)


def test_a_pair_is_never_cut_for_its_reason(made):
    rows, start = rows_of(made / "data"), load_start(made / "bert")
    kind = kind_of({"kind": "pairs", "length": 20}, start, rows)
    reasoned = Reasoned(kind, 5)
    examples = reasoned.encode(rows["train"])
    plain = kind.encode(rows["train"], "dev")
    batch = reasoned.collate(examples[:9])
    told = [row for row in examples[:9] if row["rich"] is not None]
    assert len(batch["rich_ids"]) == len(told) == 6 and len(batch["ids"]) == 9
    for place, row in enumerate(told):
        size = len(row["ids"])
        assert row["ids"] in [other["ids"] for other in plain] and size <= 20
        assert batch["rich_ids"][place, :size].tolist() == row["ids"] == batch["ids"][place, :size].tolist()
        assert batch["rich_mask"][place].sum() == size + len(row["rich"]) + 1 <= 26
        assert len(row["rich"]) == 5 and batch["rich_ids"][place, size + 5] == row["ids"][-1]
    assert reasoned.cut == sum(row["rich"] is not None for row in examples)
    one = {"ids": [2, 8, 3, 9, 3], "segments": [0, 0, 0, 1, 1], "rich": [5, 6], "label": 0, "query": 0}
    batch = reasoned.collate([one | {"rich": None}, one])
    assert batch["rich_segments"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]] and batch["segments"].shape == (2, 5)


def test_a_stopped_run_continues_bit_for_bit(made, tmp_path):
    last = TRAINING | {"patience": None}  # its last weights: the best may be those before any step
    go(made, tmp_path / "whole", training=last)
    again = lambda: go(made, tmp_path / "cut", tmp_path / "kept", training=last | {"checkpoint_steps": 3})
    killed(module, again, 5)
    assert continued(module, again).resumed_at == 3 and not (tmp_path / "kept").exists()
    assert same_weights(tmp_path / "whole/model", tmp_path / "cut/model")


def test_what_cannot_work(made, tmp_path):
    _tuned.write_examples(tmp_path / "bare", "match", 30)
    for more, words in (
        ({"data": tmp_path / "bare"}, "no row with a reason"),
        ({"length": 80, "reasons": 40}, "make 121 tokens, but the model has positions for 96"),
        ({"method": {"temperature": 0}}, "temperature must be > 0"),
        ({"students": {}}, "student"),
    ):
        with pytest.raises((SettingsError, Rejected, LookupError, ValueError), match=words):
            go(made, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_as_a_command(made, tmp_path, capsys):
    import yaml

    entry = {"length": 64, "reasons": 12, "training": TRAINING | {"steps": 2}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"distill": {"relevance": {"pairs": entry}}}))
    module.main("params.yaml:distill.relevance", "pairs",
                *map(str, (made / "bert", made / "data", tmp_path / "out", tmp_path / "kept")))  # fmt: skip
    assert "relevance pairs: dev" in capsys.readouterr().out
