"""Sessions: sequences of items -> a model of models/recommend/session/ that ranks every item as the next one.

    {method: session/sasrec, data: sample, sequences: {unit: product_id, length: 20}, training: {epochs: 5}}

A request is the history of a session before its last event of the split; that event is to be found. What somebody
viewed may be viewed again, so nothing of the history is left out.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import polars as pl
import torch

from models import build
from models.recommend._ranking import judged
from models.recommend._top import top
from models.recommend.retrieval._log import Log
from tasks.batches import Batches
from tasks.files import digest
from tasks.recommenders._family import chosen_keys, settings_of
from tasks.sequences import FIRST, Cases, Sequences, read_log, sequences
from tasks.settings import SettingsError
from tasks.training import Trained, Training, train

__all__ = ["Family"]

KEYS = ("method", "data", "sequences", "settings", "training")
SEQUENCES = ("unit", "length", "least", "min_count", "collapse")
TRAINING = {"epochs": 10, "batch": 128, "patience": 2}  # ours
REFUSED = ("intent", "mercatran")  # of other data: purchases to come, and items known by their text
CHUNK = 256


class Family:
    """See tasks/recommenders/_family.py."""

    def __init__(self, name: str, method: str, entry: Mapping, ingest: Path):
        place = f"recommenders.models.{name}"
        chosen_keys(entry, KEYS, place)
        chosen_keys(told := dict(entry.get("sequences") or {}), SEQUENCES, f"{place}.sequences")
        if method in REFUSED:
            raise SettingsError(f"{place}: {method} needs more than ids of items; tasks/merrec_benchmark.py trains it")
        self.method, self.settings = method, settings_of("session", method, entry, place)
        self.fingerprint = f"{digest(ingest / 'manifest.json')} {told}"
        self.unit = told.pop("unit", "item_id")
        self.told, self.events = told, read_log(ingest, ["user_id", self.unit])

    @cached_property
    def sequences(self) -> Sequences:
        """As the model reads them: items that training hardly knows are unknown."""
        return sequences(self.events, unit=self.unit, **self.told)

    @cached_property
    def whole(self) -> Sequences:
        """The same sequences with ids for every item of the log: what a request says in people's own ids."""
        return sequences(self.events, unit=self.unit, **self.told | {"min_count": 1}, whole=True)

    def train(self, training: Mapping, checkpoints: Path | None, device: str) -> Trained:
        """Steps until val is no longer better."""
        settings = Training.read(TRAINING | dict(training))
        torch.manual_seed(settings.seed)
        known = self.sequences.vocabulary.items
        self.model = build("recommend.session", self.method, known, **self.settings).to(device)
        batches = Batches({"items": self.sequences.train}, settings.batch, settings.seed)
        cases = self.sequences.val

        def validate() -> dict[str, float]:
            found = _ranked(self.model.eval(), cases, device)
            return {f"val_{key}": value for key, value in found.items()} | {"score": found["recall@20"]}

        done = train(self.model, batches, settings, validate, self.method, checkpoints, device)
        self.model.cpu()
        return done

    def rows(self, split: str) -> pl.DataFrame:
        """A row for each session that ends in the split: `user`, `history`, `truth` (one item)."""
        cases: Cases = getattr(self.whole, split)
        values, name = self.whole.vocabulary.values, self._names()
        row, place = (cases.items >= FIRST).nonzero()
        flat = values.gather(cases.items[row, place] - FIRST)
        lists = pl.DataFrame({"row": row, "item": flat}).group_by("row", maintain_order=True).agg("item")
        history = pl.DataFrame({"row": range(len(cases))}, schema={"row": pl.Int64}).join(lists, on="row", how="left")
        truth = values.gather(cases.targets[:, 0] - FIRST)
        user = pl.DataFrame({"number": cases.user}).join(name, on="number", how="left", maintain_order="left")["user"]
        return pl.DataFrame(
            [
                user,
                history["item"].fill_null([]).alias("history"),
                pl.Series("truth", truth).reshape((-1, 1)).arr.to_list(),
            ]
        )

    def log(self) -> pl.DataFrame:
        pairs = self.events.filter(pl.col("split") == "train").drop_nulls(self.unit)
        return pairs.select(user="user_id", item=self.unit).unique(maintain_order=True)

    def bundle(self, folder: Path) -> dict:
        values = self.sequences.vocabulary.values
        count = self.log().group_by("item").len("count")
        table = values.alias("item").to_frame().join(count, on="item", how="left", maintain_order="left")
        table.with_columns(pl.col("count").fill_null(0)).write_parquet(folder / "items.parquet")
        sizes = [self.sequences.vocabulary.items]
        user_type = str(self.events["user_id"].dtype)
        return {"repeats": True, "sizes": sizes, "length": self.sequences.length, "user_type": user_type}

    def _names(self) -> pl.DataFrame:
        """Number of each user -> id."""
        return self.events.select(number=pl.col("user").cast(pl.Int64), user="user_id").unique("number")


@torch.inference_mode()
def _ranked(model, cases: Cases, device: str) -> dict[str, float]:
    """Recall and NDCG at 20 of the next item, which may be one that training does not know: that one is never found."""
    lists = [top(model.score(torch.from_numpy(part).to(device)).cpu()[:, FIRST:], min(20, model.items - 1))[1]
             for part in _chunks(cases.items)]  # fmt: skip
    rows = torch.arange(len(cases))
    target = torch.from_numpy(cases.targets[:, 0]).long()
    truth = Log.of(rows, target, len(rows), model.items + 1)
    found = judged(torch.cat(lists) + FIRST, rows, truth, (20,)).metrics
    return {name: float(found[name].mean()) for name in ("recall@20", "ndcg@20")}


def _chunks(items):
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))
