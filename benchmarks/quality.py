"""Is a prompt on a frozen backbone as good as training for the new task? Five ways, three seeds, one table.

    python benchmarks/quality.py --data FOLDER [--only census_income_kdd ...] [--seeds 3] [--out FILE.md]

FOLDER holds `multitask/census_income_kdd` and `recsys/retailrocket`; `sample` needs nothing. Every model reads the same
encoded rows and has the same embedding, expert and tower widths, optimizer and budget; test is looked at once.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import build
from tasks.batches import load_split
from tasks.evaluate import metrics, predict
from tasks.files import read_json, write_text
from tasks.labels import read_tasks
from tasks.train import fit_backbone, labels_of
from tasks.training import Training, use_threads
from tasks.tune_prompt import fit_head

SIZES = {"embedding": 4, "towers": [64, 32]}  # and 256-128 for every expert or bottom: the published Census settings
PLAIN = {"dropout": 0.0, "norm": False, "dense_field": False}  # as MPT-Rec has it
WAYS = {  # name in the table -> what is trained for the new task
    "from scratch, new task alone": "everything",
    "joint retraining of all tasks (MMoE)": "everything",
    "joint retraining of all tasks (MPT-Rec)": "everything",
    "prompt on frozen MPT-Rec": "head",
    "frozen MMoE, new gate + tower": "head",
    "frozen Shared-Bottom, new tower": "head",
}


def prepare(name: str, chosen: dict, data: Path, folder: Path) -> dict:
    """Raw files to encoded rows and labels, by the pipeline's own commands."""
    dataset = dict(chosen["dataset"])
    dataset["source"] = dataset["source"] if name == "sample" else str(data / dataset["source"])
    params = {
        "datasets": {name: dataset},
        "recommend": {"data": name, "features": {}, "negatives": chosen["negatives"]},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    address = f"{folder}/params.yaml"
    for words in (
        ["fetch", f"{address}:datasets.{name}", f"{folder}/raw", f"{folder}/validation"],
        ["ingest", f"{address}:datasets.{name}", f"{folder}/raw", f"{folder}/ingest"],
        ["features", f"{address}:recommend", f"{folder}/ingest", f"{folder}/features"],
    ):
        subprocess.run(
            [sys.executable, "-m", f"tasks.{words[0]}", *words[1:]], check=True, cwd=Path(__file__).parents[1]
        )
    manifest = read_json(folder / "features/manifest.json")
    tasks = read_tasks(chosen["base"] | chosen["new"], folder / "ingest", manifest)
    splits = ("train", "val", "test")
    return {
        "manifest": manifest,
        "names": [task.name for task in tasks],
        "rows": {split: load_split(folder / "features", split) for split in splits},
        "labels": {split: labels_of(tasks, split, folder / "ingest", folder / "features") for split in splits},
    }


def trained(method: str, settings: dict, prepared: dict, columns: list[int], limits: dict, seed: int):
    """A backbone trained on the chosen tasks: (model, test probabilities, seconds)."""
    manifest = prepared["manifest"]
    labels = {split: value[:, columns] for split, value in prepared["labels"].items()}
    training = Training.read(limits | {"seed": seed})
    torch.manual_seed(seed)
    model = build("recommend", method, manifest["sizes"], len(manifest["numerical"]), len(columns), **settings)
    done = fit_backbone(model, [prepared["names"][i] for i in columns], prepared["rows"], labels, training)
    return model.eval().requires_grad_(False), predict(model, *prepared["rows"]["test"]), done.seconds


def auc_of(probability, prepared: dict, column: int) -> float:
    return metrics(probability, prepared["labels"]["test"][:, column])["auc"]


def compare(chosen: dict, prepared: dict, folder: Path, seed: int) -> dict:
    """One seed: way -> {auc, parameters, seconds, old: {task: auc}}."""
    base, new = list(range(len(chosen["base"]))), len(chosen["base"])
    settings = {
        "mpt_rec": SIZES | {"experts": [256, 128]},
        "mmoe": SIZES | PLAIN | {"experts": 1 + len(base), "widths": [256, 128]},
        "shared_bottom": SIZES | PLAIN | {"bottom": [256, 128]},
        "single_task": SIZES | PLAIN | {"bottom": [256, 128]},
    }
    found = {}
    for way, method, columns in (
        ("from scratch, new task alone", "single_task", [new]),
        ("joint retraining of all tasks (MMoE)", "mmoe", [*base, new]),
        ("joint retraining of all tasks (MPT-Rec)", "mpt_rec", [*base, new]),
    ):
        model, test, seconds = trained(method, settings[method], prepared, columns, chosen["backbone"], seed)
        found[way] = {
            "auc": auc_of(test[:, -1], prepared, new),
            "parameters": sum(p.numel() for p in model.parameters()),
            "seconds": seconds,
            "old": {prepared["names"][c]: auc_of(test[:, i], prepared, c) for i, c in enumerate(columns) if c != new},
        }
    label = {split: value[:, new] for split, value in prepared["labels"].items()}
    for way, method in (
        ("prompt on frozen MPT-Rec", "mpt_rec"),
        ("frozen MMoE, new gate + tower", "mmoe"),
        ("frozen Shared-Bottom, new tower", "shared_bottom"),
    ):
        model, before, seconds = trained(method, settings[method], prepared, base, chosen["backbone"], seed)
        head = {"training": chosen["head"] | {"seed": seed}}
        tuned = fit_head(model, f"{method} {seed}", prepared["rows"], label, head, folder / "memo", way)
        after = predict(model, *prepared["rows"]["test"])
        if not torch.equal(before, after):
            raise AssertionError(f"{way}: tuning the head changed an old task's prediction")
        found[way] = {
            "auc": tuned.report["auc"],
            "parameters": sum(p.numel() for p in tuned.head.parameters()),
            "seconds": tuned.trained.seconds + tuned.represented,
            "backbone_seconds": seconds,
            "old": {prepared["names"][c]: auc_of(before[:, i], prepared, c) for i, c in enumerate(base)},
        }
    return found


def spread(values: list[float]) -> str:
    """mean ± half of the 95 % interval of the mean over seeds (Student's t)."""
    t = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}.get(len(values))
    return f"{statistics.mean(values):.4f}" + (
        f" ± {t * statistics.stdev(values) / len(values) ** 0.5:.4f}" if t else ""
    )


def table(name: str, prepared: dict, seeds: list[dict]) -> str:
    new, old = prepared["names"][-1], prepared["names"][:-1]
    counts = ", ".join(f"{split} {len(value):,}" for split, value in prepared["labels"].items())
    first = next(iter(WAYS))
    mean = lambda way, key: statistics.mean(seed[way][key] for seed in seeds)
    lines = [
        f"### {name}: new task `{new}` on {', '.join(f'`{task}`' for task in old)}",
        f"Rows: {counts}; {len(seeds)} seeds, mean and 95 % interval of the mean.",
        "",
        f"| way | AUC {new} | against scratch | trained parameters | seconds / scratch | "
        + " | ".join(f"AUC {task}" for task in old) + " |",
        "|---|---|---|---|---|" + "---|" * len(old),
    ]  # fmt: skip
    for way in WAYS:
        runs = [seed[way] for seed in seeds]
        olds = [spread([run["old"][task] for run in runs]) if task in runs[0]["old"] else "-" for task in old]
        cells = [
            way,
            spread([run["auc"] for run in runs]),
            f"{mean(way, 'auc') - mean(first, 'auc'):+.4f}",
            f"{runs[0]['parameters']:,}",
            f"{mean(way, 'seconds') / mean(first, 'seconds'):.2f}",
            *olds,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    prompt = mean("prompt on frozen MPT-Rec", "auc")
    bars = {
        "frozen MMoE head": (prompt - mean("frozen MMoE, new gate + tower", "auc"), 0.0),
        "from scratch": (prompt - mean(first, "auc"), -0.010),
    }
    verdicts = [f"prompt - {other}: {gap:+.4f} ({'pass' if gap >= least else 'FAIL'}, at least {least})"
                for other, (gap, least) in bars.items()]  # fmt: skip
    return "\n".join([*lines, "", "; ".join(verdicts), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    use_threads()
    chosen = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    parts, raw, started = [], {}, time.monotonic()
    for name in given.only or chosen:
        with TemporaryDirectory() as temporary:
            prepared = prepare(name, chosen[name], given.data, Path(temporary))
            seeds = [compare(chosen[name], prepared, Path(temporary), seed) for seed in range(1, given.seeds + 1)]
        raw[name] = seeds
        parts.append(table(name, prepared, seeds))
        print("\n" + parts[-1], flush=True)
    if given.out:
        write_text(given.out, "\n".join(parts))
        write_text(given.out.with_suffix(".json"), json.dumps(raw, indent=1))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
