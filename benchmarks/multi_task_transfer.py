"""Do tasks that teach each other do better? CrossDistil and KD-MTL against MMoE and single tasks on real rows.

    python benchmarks/multi_task_transfer.py --data FOLDER [--only census_income_kdd ...] [--seeds 3] [--out FILE.md]

FOLDER holds `multitask/census_income_kdd` and `recsys/retailrocket`. Rows, sizes, optimizer and budget are those of
benchmarks/quality.py, equal for every model; each is selected on val, and test is looked at once. Multi-AUC of a task
asks more than its AUC: of rows that it labels alike, those that the other task calls positive come first.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from quality import PLAIN, SIZES, prepare, spread

from models import build
from models.metrics import auc
from models.recommend._quadruplets import grades, multi_auc
from tasks.evaluate import predict
from tasks.files import write_text
from tasks.train import fit_backbone
from tasks.training import Training, use_threads

# Data set of quality.yaml -> the two tasks, of those that are declared there.
TASKS = {"census_income_kdd": ("income", "education"), "retailrocket": ("buy", "cart")}
MMOE = {"experts": 3, "widths": [256, 128], "towers": SIZES["towers"]} | PLAIN
ALONE = {"bottom": [256, 128], "towers": SIZES["towers"]} | PLAIN
TAUGHT = {"embedding": SIZES["embedding"], "method": "mmoe", "settings": MMOE}
WAYS = {  # name in the table -> method and its settings
    "single task": ("single_task", {"embedding": SIZES["embedding"]} | ALONE),
    "MMoE": ("mmoe", {"embedding": SIZES["embedding"]} | MMOE),
    "MMoE with CrossDistil": ("crossdistil", TAUGHT | {"towers": SIZES["towers"]}),
    "MMoE with KD-MTL": ("kd_mtl", TAUGHT | {"teacher": ALONE}),
}
PLAIN_WAY, TEACHERS = "MMoE", "single task"


def run(way: str, prepared: dict, limits: dict, seed: int, teachers) -> tuple[torch.nn.Module, dict]:
    """The trained model, and its metrics: each task's AUC and multi-AUC, seconds."""
    method, settings = WAYS[way]
    manifest, names = prepared["manifest"], prepared["names"]
    torch.manual_seed(seed)
    model = build("recommend", method, manifest["sizes"], len(manifest["numerical"]), len(names), **settings)
    if method == "kd_mtl":
        model.teach(teachers)
    training = Training.read(limits | {"seed": seed})
    started = time.process_time()
    done = fit_backbone(model, names, prepared["rows"], prepared["labels"], training)
    spent = time.process_time() - started
    probability, label = predict(model, *prepared["rows"]["test"]), prepared["labels"]["test"]
    found = {"seconds": spent, "epoch": done.best_epoch}
    for place, name in enumerate(names):
        here = (label >= 0).all(1)
        found[f"AUC {name}"] = auc(probability[here, place], label[here, place]).item()
        own_first = label[here][:, [place, 1 - place]]
        found[f"multi-AUC {name}"] = multi_auc(probability[here, place], 3 - grades(own_first)).item()
    print(seed, way, {name: round(value, 4) for name, value in found.items()}, flush=True)
    return model, found


def table(name: str, prepared: dict, runs: list[dict]) -> str:
    """Ways as rows: each metric, and its difference to plain MMoE of the same seed."""
    first, second = prepared["names"]
    label = prepared["labels"]["test"]
    groups = torch.bincount(grades(label[(label >= 0).all(1)]), minlength=4).tolist()
    counts = ", ".join(f"{split} {len(value):,}" for split, value in prepared["labels"].items())
    metrics = [f"{kind} {task}" for task in (first, second) for kind in ("AUC", "multi-AUC")]
    lines = [
        f"### {name}: `{first}` and `{second}`",
        f"Rows: {counts}; in test {groups[0]:,} of both, {groups[1]:,} of `{first}` alone, {groups[2]:,} of "
        f"`{second}` alone, {groups[3]:,} of neither. {len(runs)} seeds, mean and 95 % interval of the mean; below "
        f"each, the difference to {PLAIN_WAY} of the same seed.",
        "",
        f"| | {' | '.join(metrics)} | CPU s |",
        "|---|" + "---:|" * (len(metrics) + 1),
    ]
    for way in WAYS:
        seconds = sum(one[way]["seconds"] for one in runs) / len(runs)
        lines.append(
            f"| {way} | {' | '.join(spread([one[way][key] for one in runs]) for key in metrics)} | {seconds:.0f} |"
        )
        if way != PLAIN_WAY:
            gaps = [spread([one[way][key] - one[PLAIN_WAY][key] for one in runs]) for key in metrics]
            lines.append(f"| ... minus {PLAIN_WAY} | {' | '.join(gaps)} | |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of quality.yaml's")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    use_threads()
    settings, parts = yaml.safe_load(Path(__file__).with_name("quality.yaml").read_text()), []
    for name in given.only:
        chosen = settings[name]
        declared = chosen["base"] | chosen["new"]
        limits = chosen["backbone"] | ({"epochs": given.epochs} if given.epochs else {})
        asked = {"dataset": chosen["dataset"], "negatives": {}, "base": {task: declared[task] for task in TASKS[name]}}
        with TemporaryDirectory() as temporary:
            prepared = prepare(name, asked | {"new": {}}, given.data, Path(temporary))
        runs = []
        for seed in range(1, given.seeds + 1):
            teachers, found = None, {}
            for way in WAYS:
                model, found[way] = run(way, prepared, limits, seed, teachers)
                teachers = model if way == TEACHERS else teachers
            runs.append(found)
        parts.append(table(name, prepared, runs))
        print("\n" + parts[-1], flush=True)
        if given.out:
            write_text(given.out, "\n".join(parts))


if __name__ == "__main__":
    main()
