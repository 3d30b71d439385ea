"""Does DMTL keep bait out of the candidates, and how much of its teacher does the student keep? The sample log.

    python benchmarks/dmtl.py [--rows 60000] [--seeds 3] [--epochs 4] [--requests 300] [--out FILE.md]

Teacher and student come from one run of `tasks.recommender`, as params.yaml would ask for it. Beside them stand the
same two towers - same first weights, batches, steps - taught by a label: by clicks alone, and by clicks that were read.
All items are ranked for users of the last three days. The log has no impressions without a click: a click is a view,
those that nobody clicked are drawn at random, and an item was read if a like, a cart, an offer or a purchase followed.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import polars as pl
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from quality import spread

import models
from models.metrics import gauc
from models.recommend._ranking import judged
from models.recommend.retrieval._log import Log
from models.recommend.towers.dmtl import DMTL, both_logit
from tasks.datasets import sample
from tasks.files import write_text
from tasks.item_index import IndexRejected, ItemIndex, exact, make_index
from tasks.recommender import load, train_recommender
from tasks.recommenders import towers
from tasks.training import use_threads

ROOT = Path(__file__).parents[1]
ENTRY = {
    "method": "towers/dmtl",
    "data": "sample",
    "fields": {"history": 6, "words": None},  # a title repeats the other columns
    "settings": {"embedding": 8, "expert_widths": [64, 32], "tower_widths": [32], "widths": [64], "width": 32},
}
TRAINING = {"batch": 256, "lr": 3.0e-3}
LABELS = {"clicks alone": "click", "clicks that were read": "read"}
AT = (20, 100)
RANDOM = 20  # items drawn for each viewed one
SEEN = 5  # views of an item whose share of likes is told
MEASURES = {
    "recall@20": "recall@20 of what is read",
    "recall@100": "recall@100 of what is read",
    "ndcg@20": "NDCG@20 of what is read",
    "viewed@100": "recall@100 of what is viewed",
    "auc_viewed": "AUC, viewed over random items",
    "auc_read": "AUC, read over viewed only",
    "likes": "true chance of a like, of 20 shown, %",
    "bait": "bait among 20 shown, %",
    "first": "the teacher's best 20 among 100",
}


class Labelled(nn.Module):
    """A DMTL's two towers, taught by a label instead of a teacher."""

    def __init__(self, whole: DMTL, label: str):
        super().__init__()
        self.towers, self.negatives, self.label = whole.towers, whole.negatives, label

    def forward(self, item: Tensor, item_numbers: Tensor, click: Tensor, reading: Tensor, **asked: Tensor):
        logit = (self.towers.user_vectors(**asked) * self.towers.item_vectors(item, item_numbers)).sum(-1)
        loss = F.binary_cross_entropy_with_logits(logit, click * reading if self.label == "read" else click)
        return loss, {"loss": loss}


def train(way: str, ingest: Path, out: Path, training: dict) -> nn.Module:
    """One run of the command's own function; returns all that was trained, of which `out` has what is served."""
    made = []

    def build(*parts, **settings):
        whole = models.build(*parts, **settings)
        made.append(Labelled(whole, LABELS[way]) if way in LABELS else whole)
        return made[-1]

    with patch.object(towers, "build", build):
        train_recommender({"run": ENTRY | {"training": training}}, "run", ingest, out, None)
    return made[0].eval()


class Asked:
    """The test requests, as both students and the teacher read them, and what is known of their answers."""

    def __init__(self, served, requests: pl.DataFrame, events: pl.DataFrame, chance: pl.DataFrame):
        self.requests, self.items = requests, served.items["item"]
        place = served.items.select(item="item", place=pl.int_range(pl.len()))
        row, item = served._history(requests)
        inner = served.model
        table = inner.recent(row, item, len(requests), inner.length)
        self.known = {"user": inner.fields[inner.users.places(requests["user"])],
                      "user_numbers": torch.zeros(len(requests), 0),
                      **inner.described(table, inner.item, inner.item_numbers)}  # fmt: skip
        self.item, self.item_numbers, self.had = inner.item, inner.item_numbers, (row, item)
        number = requests.select("user", row=pl.int_range(pl.len()))
        told = number.join(events, on="user").join(place, on="item").group_by("row", "place").agg(pl.col("read").any())
        told = told.sort("row", "place")
        self.row, self.place, self.read = (torch.from_numpy(told[name].to_numpy().copy()) for name in told.columns)
        own = torch.zeros(len(requests), len(self.items), dtype=torch.bool).index_put_(self.had, torch.tensor(True))
        fresh = ~own[self.row, self.place]  # what was read before is not asked for
        self.row, self.place, self.read = self.row[fresh], self.place[fresh], self.read[fresh]
        joined = served.items.select("item").join(chance, on="item", how="left", maintain_order="left")
        self.chance = torch.from_numpy(joined["like"].fill_null(float("nan")).to_numpy().copy())
        self.bait = self.chance < self.chance[~self.chance.isnan()].quantile(0.25)

    def truth(self, kept: Tensor) -> Log:
        return Log.of(self.row[kept], self.place[kept], len(self.requests), len(self.items))

    def student(self, pair: nn.Module) -> tuple[Tensor, Tensor]:
        """Vectors of the requests, and scores of all items for each."""
        users = pair.user_vectors(**self.known)
        return users, users @ pair.item_vectors(self.item, self.item_numbers).mT

    def teacher(self, teacher: nn.Module) -> Tensor:
        """The teacher's logits of a click that is read, of all items for each request: (R, I)."""
        score = []
        for number in range(len(self.requests)):
            one = {name: part[number : number + 1] for name, part in self.known.items()}
            ctr, cvr = teacher.judge(teacher.known(**one), self.item, self.item_numbers).unbind(-1)
            score.append(both_logit(ctr, cvr))
        return torch.stack(score)

    def popular(self, ingest: Path) -> Tensor:
        """Users who viewed each item in training, the same for every request: (R, I)."""
        log = pl.scan_parquet(ingest / "events/**/*.parquet", hive_partitioning=False)
        viewed = log.filter(pl.col("split") == "train").group_by(item="item_id").agg(pl.col("user_id").n_unique())
        count = self.items.to_frame("item").join(viewed.collect(), on="item", how="left", maintain_order="left")
        count = count["user_id"].fill_null(0).cast(pl.Float32)
        return torch.from_numpy(count.to_numpy().copy()).expand(len(self.requests), -1)

    def measure(self, score: Tensor, teachers: Tensor | None = None) -> dict[str, float]:
        """See MEASURES; `teachers` are the teacher's lists."""
        lists = self.lists(score)
        rows, every = torch.arange(len(lists)), torch.ones_like(self.read)
        metric = judged(lists, rows, self.truth(self.read), AT).metrics
        found = {name: metric[name].nanmean().item() for name in ("recall@20", "recall@100", "ndcg@20")}
        found["viewed@100"] = judged(lists, rows, self.truth(every), AT).metrics["recall@100"].nanmean().item()
        viewed = score[self.row, self.place]
        draw = torch.Generator().manual_seed(0)
        user = self.row.repeat_interleave(RANDOM)
        beside = score[user, torch.randint(len(self.items), (len(user),), generator=draw)]
        label = torch.cat([torch.ones_like(viewed), torch.zeros_like(beside)])
        found["auc_viewed"] = gauc(torch.cat([viewed, beside]), label, torch.cat([self.row, user])).item()
        found["auc_read"] = gauc(viewed, self.read.float(), self.row).item()
        found["likes"] = 100 * self.chance[lists[:, :20]].nanmean().item()
        rated = ~self.chance[lists[:, :20]].isnan()
        found["bait"] = 100 * (self.bait[lists[:, :20]] & rated).sum().item() / rated.sum().item()
        if teachers is not None:
            found["first"] = overlap(teachers[:, :20], lists)
        return found

    def lists(self, score: Tensor) -> Tensor:
        """The 100 best items of each request that it did not have: (R, 100)."""
        return score.index_put(self.had, torch.tensor(-torch.inf)).topk(max(AT)).indices


def overlap(wanted: Tensor, lists: Tensor) -> float:
    """Share of the wanted items that are in the lists, request by request."""
    return (wanted[:, :, None] == lists[:, None]).any(-1).float().mean().item()


def index_of(packed: Path, folder: Path, users: Tensor) -> dict[str, float | str]:
    """The index of a served pair, against exact search for these users; CPU milliseconds a user of both."""
    try:
        make_index(packed, folder)
    except IndexRejected as error:
        return {"rejected": str(error)}
    index = ItemIndex.open(folder)
    started = time.process_time()
    _, rows = index.search(users, 100)
    middle = time.process_time()
    best = exact(users, index.vectors, 100)
    spent = (middle - started, time.process_time() - middle)
    told = {"recall@100 of exact search": overlap(best, rows), "candidates": index.manifest["search"]}
    return told | dict(zip(("ms", "ms, exact"), (1000 * each / len(users) for each in spent), strict=True))


def prepare(folder: Path, rows: int) -> tuple[Path, pl.DataFrame, pl.DataFrame]:
    """The ingested log by the pipeline's commands; test impressions `user`, `item`, `read`; items' chance of a like."""
    settings = {
        "source": "tasks/datasets/sample.py",
        "rows": rows,
        "seed": 11,
        "split": {"val_days": 3, "test_days": 3},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump({"datasets": {"sample": settings}}))
    address = f"{folder}/params.yaml:datasets.sample"
    for words in (["fetch", address, f"{folder}/raw", f"{folder}/validation"],
                  ["ingest", address, f"{folder}/raw", f"{folder}/ingest"]):  # fmt: skip
        subprocess.run([sys.executable, "-m", f"tasks.{words[0]}", *words[1:]], check=True, cwd=ROOT)
    log = pl.scan_parquet(folder / "ingest/events/**/*.parquet", hive_partitioning=False)
    test = log.filter(pl.col("split") == "test").select(user="user_id", item="item_id", event="event_id").collect()
    events = test.group_by("user", "item").agg(read=(pl.col("event") != "item_view").any())
    views = sample.best_scores(folder / "raw").select(item="item_id", like="p_item_like")
    chance = views.group_by("item").agg(pl.col("like").mean(), views=pl.len()).collect()
    return folder / "ingest", events, chance.filter(pl.col("views") >= SEEN)


def compare(folder: Path, ingest: Path, events: pl.DataFrame, chance: pl.DataFrame, given, seed: int) -> dict:
    """One seed: way -> measures, and way -> its index."""
    training = TRAINING | {"epochs": given.epochs, "seed": seed}
    requests = towers.Family("run", "dmtl", ENTRY, ingest).rows("test")
    requests = requests.sample(min(given.requests, len(requests)), seed=0)
    found, indexes, seconds, teachers = {}, {}, {}, None
    for way in ("DMTL, student", *LABELS):
        out = folder / f"{seed}-{way.replace(' ', '-')}"
        started = time.process_time()
        whole = train(way, ingest, out, training)
        seconds[way] = time.process_time() - started
        served = load(out / "packed")
        asked = Asked(served, requests, events, chance)
        with torch.inference_mode():
            if teachers is None:
                score = asked.teacher(whole.teacher)
                teachers = asked.lists(score)
                found["DMTL, teacher"] = asked.measure(score)
                found["most viewed items"] = asked.measure(asked.popular(ingest), teachers)
            users, score = asked.student(served.model.model)
            found[way] = asked.measure(score, teachers)
            indexes[way] = index_of(out / "packed", out / "index", users)
        print(seed, way, json.dumps(found[way] | indexes[way] | {"s": seconds[way]}), flush=True)
    sizes = {"requests": len(requests), "items": len(asked.items), "viewed": len(asked.row),
             "read": int(asked.read.sum())}  # fmt: skip
    return {"found": found, "indexes": indexes, "seconds": seconds, "sizes": sizes}


def table(runs: list[dict]) -> str:
    """Measures as rows, ways as columns, then the student against clicks alone, then the indexes."""
    ways = ["most viewed items", *LABELS, "DMTL, student", "DMTL, teacher"]
    lines = [f"| | {' | '.join(ways)} | student - clicks alone |", "|---|" + "---:|" * (len(ways) + 1)]
    for key, title in MEASURES.items():
        values = {way: [run["found"][way][key] for run in runs] for way in ways if key in runs[0]["found"][way]}
        gap = [a - b for a, b in zip(values["DMTL, student"], values["clicks alone"], strict=True)]
        cells = [spread(values[way]) if way in values else "-" for way in ways]
        lines.append(f"| {title} | {' | '.join(cells)} | {spread(gap)} |")
    spent = [f"{mean(runs, way):.0f}" for way in (*LABELS, "DMTL, student")]
    lines.append(f"| CPU s of training | - | {' | '.join(spent)} | the student's run | - |")
    lines += ["", "| index of | seed | recall@100 of exact search | candidates | CPU ms a user | exact |",
              "|---|---:|---:|---:|---:|---:|"]  # fmt: skip
    for seed, run in enumerate(runs, start=1):
        for way, told in run["indexes"].items():
            cells = [told["rejected"]] if "rejected" in told else [
                f"{told['recall@100 of exact search']:.4f}", str(told["candidates"]), f"{told['ms']:.3f}",
                f"{told['ms, exact']:.3f}"]  # fmt: skip
            lines.append(f"| {way} | {seed} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def mean(runs: list[dict], way: str) -> float:
    return sum(run["seconds"][way] for run in runs) / len(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    use_threads()
    with TemporaryDirectory() as temporary:
        prepared = prepare(Path(temporary), given.rows)
        runs = [compare(Path(temporary), *prepared, given, seed) for seed in range(1, given.seeds + 1)]
    sizes = runs[0]["sizes"]
    head = (
        f"{given.rows:,} events, {sizes['items']:,} items, {given.epochs} epochs, {given.seeds} seeds; "
        f"{sizes['requests']} users of the last days, who viewed {sizes['viewed']:,} items and read {sizes['read']:,}."
    )
    text = f"{head}\n\n{table(runs)}"
    print("\n" + text)
    if given.out:
        write_text(given.out, text)


if __name__ == "__main__":
    main()
