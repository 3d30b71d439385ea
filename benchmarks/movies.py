"""New releases of MovieLens: who buys them, by CML on descriptions against descriptions and purchases alone.

    python benchmarks/movies.py FOLDER [--describe words MODEL_FOLDER ...] [--epochs 20] [--out FOLDER]

FOLDER holds movies.parquet and ratings.parquet (see tasks/datasets/movies.py). Trained on releases before 2012,
calibrated on those of 2012 to 2014, measured on those from 2015 on.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.datasets import movies
from tasks.release import SYSTEMS, release

WINDOWS = {"validation": "2012-01-01", "test": "2015-01-01"}
SHOWN = ("item_auc", "probability_item_auc", "recall@20", "ndcg@20", "ece", "audience_ratio", "audience_error",
         "audience_rank_correlation")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--describe", nargs="+", default=["words"])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    events = movies.read(given.folder).collect()
    for how in given.describe:
        start = time.process_time()
        with TemporaryDirectory() as scratch:
            out = given.out / Path(how).stem if given.out else Path(scratch) / "out"
            found = release(WINDOWS | {"describe": how, "epochs": given.epochs}, events, out)
        show(Path(how).name, found, time.process_time() - start)


def show(how: str, found: dict, seconds: float) -> None:
    counts = ", ".join(f"{name} {found['items'][name]:,} releases and {found['purchases'][name]:,} purchases"
                       for name in ("train", "validation", "test"))  # fmt: skip
    best = max(found["curve"], key=lambda row: row["validation_recall"])
    print(f"\n{how}: {found['customers']} customers; {counts}; {len(found['curve'])} epochs, best {best['epoch']}; "
          f"{seconds:.0f} CPU s\n\n| system | {' | '.join(SHOWN)} |\n|{'---|' * (len(SHOWN) + 1)}")  # fmt: skip
    for name in SYSTEMS:
        cells = [f"{found[name][key]:.4f}" if key in found[name] else "" for key in SHOWN]
        print(f"| {name} | {' | '.join(cells)} |")
    print("\n| difference, paired bootstrap | mean | 95 % interval |\n|---|---|---|")
    for name, (gain, low, high) in found["gain"].items():
        print(f"| {name} | {gain:+.4f} | {low:+.4f} to {high:+.4f} |", flush=True)


if __name__ == "__main__":
    main()
