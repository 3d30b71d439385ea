"""Do session models beat popular items and item-kNN on real clicks? Yoochoose's last days, the next item among all.

    python benchmarks/merrec.py --data FOLDER [--seeds 1] [--epochs 8] [--only gru4rec ...] [--out FILE.md]

FOLDER holds `recsys/yoochoose_100k`. Every model has 64 numbers an item, the same optimizer and as many epochs at most;
val is the last tenth of the training sessions, test is the next day, looked at once: the last click of each session.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks.files import write_text
from tasks.merrec_benchmark import markdown, summarise
from tasks.merrec_groups import Data, acceleration, session
from tasks.sequences import clicks
from tasks.training import use_threads

MODELS = {
    "popularity": (session, {}),
    "item_knn": (session, {}),
    "gru4rec": (session, {"width": 64, "dropout": 0.2}),
    "nextitnet": (session, {"width": 64, "dilations": [1, 4, 1, 4]}),
    "sasrec": (session, {"width": 64, "length": 20, "heads": 2}),
    "bert4rec": (session, {"width": 64, "length": 21}),
    "skip_nextitnet": (acceleration, {"width": 64}),
    "skip_sasrec": (acceleration, {"width": 64, "length": 20}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    use_threads()
    folder = asked.data / "recsys/yoochoose_100k"
    train, test = (pl.read_parquet(folder / f"{name}.parquet") for name in ("train_full", "test"))
    data = Data(Path(), Path(), (), {})
    data.log = clicks(train, test, {"session": "session", "item": "item", "stime": "ts"})
    settings = {
        "unit": "item",
        "key": ["session"],
        "length": 20,
        "training": {"epochs": asked.epochs, "batch": 128, "lr": 5e-3, "patience": 2},
    }
    parts = []
    for name in asked.only:
        run, own = MODELS[name]
        for seed in range(asked.seeds if own else 1):
            with TemporaryDirectory() as checkpoints:
                found = run(data, settings, name, own, seed, Path(checkpoints), "cpu")
            parts.append(
                {"group": run.__name__, "model": name, "seed": seed, "order": list(found.metrics), **vars(found)}
            )
            print(name, seed, {metric: round(value["value"], 4) for metric, value in found.metrics.items()}, flush=True)
    text = markdown("yoochoose_100k", summarise(parts), {})
    print(text)
    if asked.out:
        write_text(asked.out, text)


if __name__ == "__main__":
    main()
