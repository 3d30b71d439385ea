"""A made-up checkout after a run: everything that a report can show, as much of it as is asked for."""

import json
from pathlib import Path

import polars as pl
import yaml

BEGAN = 1_790_000_000.0  # when the run began, seconds since 1970: 2026-09-21


def made_up(root: Path, tasks: int = 2, slices: int = 3, features: int = 4, texts: int = 2, steps: int = 5) -> Path:
    """Fill `root` with params.yaml, dvc.lock, artifacts/ and a journal; returns `root`."""
    names = [f"task_{number}" for number in range(tasks)]
    declared = {"given": "event_id = 'item_view'", "positive": "event_id = 'buy_comp'", "within": "session"}
    (root / "artifacts").mkdir(parents=True)
    (root / "params.yaml").write_text(yaml.safe_dump({
        "datasets": {"merrec": {}},
        "recommend": {"data": "merrec", "backbone": {"tasks": {"view": declared}},
                      "tasks": dict.fromkeys(names, declared)},
        "recommenders": {"models": {}},
    }))  # fmt: skip
    _data(root / "artifacts", features)
    _backbone(root / "artifacts", steps)
    for number, name in enumerate(names):
        _task(root / "artifacts", name, number, slices, steps)
    _texts(root / "artifacts", texts)
    _graph(root, names)
    return root


def write(path: Path, value) -> None:
    """JSON in a folder that need not be there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def verdict(name: str, slices: int, against: bool = True) -> dict:
    """A gate's verdict with a champion whose slices were all a little better."""
    parts = [{"task": name, "column": "c0_name", "value": f"Category {number}", "rows": 900, "positives": 40 + number,
              "auc": 0.7 + number / 1000, "calibration": 1.0, "logloss": 0.1} for number in range(slices)]  # fmt: skip
    champion = {"version": 3, "content": "c" * 64, "slices": [part | {"auc": part["auc"] + 0.01} for part in parts]}
    return {
        "name": name, "model": f"recommend-{name}", "passed": True, "candidate": "d" * 64, "rows": 9000,
        "champion": champion if against else None, "intervals": {name: [-0.02, -0.01, 0.0]} if against else {},
        "checks": [{"name": f"{name}: auc", "passed": True, "value": 0.8, "bound": 0.6, "reason": "0.8 >= 0.6"}],
        "metrics": {name: {"auc": 0.75, "calibration": 1.2, "logloss": 0.1, "rows": 9000, "positives": 400}},
        "model_metrics": {"latency_ms": 1.5}, "slices": parts,
        "rules": {"improvement": {"metric": "auc", "margin": -0.05, "confidence": 0.95}},
        "reliability": {name: {"predicted": [0.01, 0.1], "observed": [0.012, 0.09], "rows": [5000.0, 4000.0]}},
    }  # fmt: skip


def _data(artifacts: Path, features: int) -> None:
    events = {"item_view": {"share": 0.9}, "buy_comp": {"share": 0.1}}
    splits = {name: {"rows": 1000, "events": events, "first": f"2023-05-{day:02}", "last": f"2023-05-{day + 8:02}"}
              for name, day in (("train", 1), ("val", 10), ("test", 19))}  # fmt: skip
    write(artifacts / "ingest/merrec/manifest.json", {
        "rows": 3000, "users": 50, "items": 400, "splits": splits, "cold": {"test": {"item_share": 0.1}},
        "digest": "e" * 64,
    })  # fmt: skip
    shifts = {f"feature_{number}": {"psi": 0.3 / (1 + number), "ks": 0.05, "over": number == 2}
              for number in range(features)}  # fmt: skip
    answers = {"recommend-task_0": {"psi": 0.01, "ks": None, "over": False, "auc": 0.8, "auc_reference": 0.81}}
    write(artifacts / "monitor/merrec.json", {"features": shifts, "predictions": answers})
    rows = pl.DataFrame({"row": range(60), "user_id": [n % 4 for n in range(60)], "item_id": range(60),
                         "name": [f"A <b>{n}</b> & co" for n in range(60)],
                         "price": [float(n) for n in range(60)]})  # fmt: skip
    (artifacts / "features/rows").mkdir(parents=True)
    rows.cast({"row": pl.UInt32}).write_parquet(artifacts / "features/rows/test.parquet")


def _backbone(artifacts: Path, steps: int) -> None:
    write(artifacts / "backbone/metrics.json", {"view": {"auc": 0.76, "positives": 500}})
    write(artifacts / "backbone/backbone.json", {
        "method": "mpt_rec", "best_epoch": 2, "parameters": {"all": 1000, "without_embeddings": 900},
    })  # fmt: skip
    lines = [f"{step},{1 / step},{0.7 + step / 1000 / steps}" for step in range(1, steps + 1)]
    (artifacts / "backbone/curve.csv").write_text("\n".join(["step,loss,val_auc_view", *lines]) + "\n")
    write(artifacts / "gate/backbone/verdict.json", verdict("backbone", 1, against=False))
    write(artifacts / "receipt/backbone.json", {"status": "promoted", "version": 1, "champion": 1, "run": "r0"})


def _task(artifacts: Path, name: str, number: int, slices: int, steps: int) -> None:
    folder = artifacts / "prompt" / name
    write(folder / "metrics.json", {"auc": 0.8, "positives": 40})
    write(folder / "proof.json", {"trained_share": 0.09, "tuning_share": 0.01, "backbone_unchanged": True,
                                  "old_predictions_equal": True})  # fmt: skip
    lines = [f"{step},{1 / step},{0.7 + step / 1000 / steps}" for step in range(1, steps + 1)]
    (folder / "curve.csv").write_text("\n".join(["step,loss,val_auc", *lines]) + "\n")
    pl.DataFrame({"row": range(60), "label": [int(n % 7 == 0) for n in range(60)],
                  "probability": [n / 100 + 0.01 for n in range(60)]}).cast({"row": pl.UInt32, "label": pl.Int8}
                  ).write_parquet(folder / "test.parquet")  # fmt: skip
    write(artifacts / "gate" / name / "verdict.json", verdict(name, slices))
    write(
        artifacts / "receipt" / f"{name}.json", {"status": "promoted", "version": 4, "champion": 4, "run": f"r{number}"}
    )


def _texts(artifacts: Path, texts: int) -> None:
    said = {"greedy": {"candidate": ["A new <bike>"], "champion": ["An old bike"]}}
    write(artifacts / "pages/writer/samples/samples.json", {
        "candidate": {"name": "writer"}, "champion": {"name": "models:/language-writer/1"},
        "prompts": [{"id": f"p{number}", "prompt": "Sell a bike. " * 40, "texts": said} for number in range(texts)],
    })  # fmt: skip
    (artifacts / "generated/ads").mkdir(parents=True)
    pl.DataFrame({"id": ["a", "b"], "text": ["kept", "left"], "kept": [True, False]}).write_parquet(
        artifacts / "generated/ads/texts.parquet")  # fmt: skip


def _graph(root: Path, names: list[str]) -> None:
    """A lock of backbone, prompts and gates, of which the first prompt ran in this run and one gate failed."""
    outs = lambda *paths: [{"path": path, "md5": "0"} for path in paths]
    stages = {
        "backbone": {"cmd": "python -m tasks.train B", "deps": outs("artifacts/features"),
                     "outs": outs("artifacts/backbone")},
        "elsewhere": {"cmd": "python -m tasks.train E", "outs": outs("artifacts/elsewhere")},
    }  # fmt: skip
    lines = [
        {
            "unit": "train",
            "words": ["B"],
            "time": BEGAN - 500,
            "seconds": 100.0,
            "peak_memory_mb": 800.0,
            "failed": False,
        }
    ]
    for number, name in enumerate(names):
        stages[f"prompt@{name}"] = {"cmd": f"python -m tasks.tune_prompt {name}", "deps": outs("artifacts/backbone"),
                                    "outs": outs(f"artifacts/prompt/{name}")}  # fmt: skip
        stages[f"gate@{name}"] = {"cmd": [f"python -m tasks.gate {name}", f"python -m tasks.look {name}"],
                                  "deps": outs(f"artifacts/prompt/{name}", "artifacts/backbone/backbone.json"),
                                  "outs": outs(f"artifacts/gate/{name}")}  # fmt: skip
        told = {"unit": "tune_prompt", "words": [name], "time": BEGAN + number}
        lines += [told, told | {"seconds": 2.5, "peak_memory_mb": 300.0, "failed": False}] if number == 0 else []
    lines += [
        {
            "unit": "gate",
            "words": [names[0]],
            "time": BEGAN + 50,
            "seconds": 1.0,
            "peak_memory_mb": 90.0,
            "failed": True,
        }
    ]
    lines += [
        {
            "unit": "fresh_unit",
            "words": ["<new>"],
            "time": BEGAN + 60,
            "seconds": 1.0,
            "peak_memory_mb": 9.0,
            "failed": True,
        }
    ]
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))
    journal = root / "journal"
    journal.mkdir()
    (journal / "dvc-1-1.jsonl").write_text(json.dumps(lines[0]) + "\n")
    (journal / "dvc-2-2.jsonl").write_text("\n".join(json.dumps(line) for line in lines[1:]) + '\n{"unit": "to')
