"""Retrieval: pairs of users and items -> a model of models/recommend/retrieval/ that ranks every item for a user.

    {method: retrieval/lightgcn, data: sample, pairs: {events: [item_like], item: product_id}, training: {epochs: 9}}

Of a log of events the pairs are those of the named events (all but the first kind, which is the weakest, unless said
otherwise); a data set of interactions holds pairs already. A pair of val or test that was seen before is left out.
"""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import save_file

from models import build
from models.recommend._ranking import rank
from models.recommend.retrieval._log import Log
from models.recommend.retrieval._sampling import Pairs
from tasks.files import digest, read_json
from tasks.recommenders._family import chosen_keys, fitted, settings_of
from tasks.settings import SettingsError
from tasks.training import Trained, Training, train

__all__ = ["Family", "log_order", "new_items", "read_pairs"]

KEYS = ("method", "data", "pairs", "settings", "training")
PAIRS = ("events", "item")
TRAINING = {"epochs": 50, "batch": 2048, "patience": 5}  # ours; a method's own come from `training`
SCORE = "recall@20"


class Family:
    """See tasks/recommenders/_family.py."""

    def __init__(self, name: str, method: str, entry: Mapping, ingest: Path):
        place = f"recommenders.models.{name}"
        chosen_keys(entry, KEYS, place)
        chosen_keys(entry.get("pairs") or {}, PAIRS, f"{place}.pairs")
        self.method, self.settings = method, settings_of("retrieval", method, entry, place)
        self.pairs = read_pairs(ingest, entry.get("pairs") or {}, place)
        if self.pairs["train"].is_empty():
            raise SettingsError(f"{ingest} has no training pair for {place}; look at its pairs: {{events, item}}")
        self.fingerprint = f"{digest(ingest / 'manifest.json')} {dict(entry.get('pairs') or {})}"

    @cached_property
    def users(self) -> pl.Series:
        return self.pairs["train"]["user"].unique().sort()

    @cached_property
    def items(self) -> pl.Series:
        return self.pairs["train"]["item"].unique().sort()

    @cached_property
    def train_log(self) -> Log:
        return self._log(self.pairs["train"])

    def train(self, training: Mapping, checkpoints: Path | None, device: str) -> Trained:
        """Steps until val is no longer better; a method that is fitted takes none."""
        settings = Training.read(TRAINING | dict(training))
        torch.manual_seed(settings.seed)
        self.model = build("recommend.retrieval", self.method, self.train_log, **self.settings)
        if self.method == "als":
            from tasks.als import fit_als  # the library takes a second to import

            fit_als(self.model, self.train_log, seed=settings.seed)
        if self.model.fitted:
            return fitted()
        self.model.to(device)
        batches = Epochs(Pairs(self.train_log, settings.batch, self.model.negatives, settings.seed))
        truth = self._truth("val")

        def validate() -> dict[str, float]:
            if truth is None:
                raise SettingsError("val has no pair of known users and items, so no epoch can be chosen; give the "
                                    "data set a longer val split")  # fmt: skip
            found = rank(*self._scorer(), None, self.train_log, truth, at=(20,)).metrics
            means = {f"val_{key}": float(found[key].nanmean()) for key in ("recall@20", "ndcg@20")}
            return means | {"score": means[f"val_{SCORE}"]}

        done = train(self.model, batches, settings, validate, self.method, checkpoints, device)
        self.model.cpu()
        return done

    def _scorer(self) -> tuple:
        return (self.model.vectors() if self.model.product else self.model.score,)

    def rows(self, split: str) -> pl.DataFrame:
        """A row for each user with a new item in the split: `user`, `history` before it, `truth`."""
        return new_items(self.pairs, split)

    def log(self) -> pl.DataFrame:
        return self.pairs["train"].select("user", "item").unique(maintain_order=True)

    def bundle(self, folder: Path) -> dict:
        counts = pl.Series("count", self.train_log.item_degree.numpy())
        pl.DataFrame([self.items.alias("item"), counts]).write_parquet(folder / "items.parquet")
        self.users.to_frame("user").write_parquet(folder / "users.parquet")
        pairs = {"user": self.train_log.user.int(), "item": self.train_log.item.int()}
        save_file(pairs, folder / "pairs.safetensors")
        sizes = [len(self.users), len(self.items)]
        return {"repeats": False, "sizes": sizes, "user_type": str(self.users.dtype)}

    def _log(self, pairs: pl.DataFrame) -> Log:
        user, item = number(pairs["user"], self.users), number(pairs["item"], self.items)
        return Log.of(user, item, len(self.users), len(self.items))

    def _truth(self, split: str) -> Log | None:
        """New pairs of known users and items; None where there is none."""
        known = [pl.col(key).is_in(ids.implode()) for key, ids in (("user", self.users), ("item", self.items))]
        rows = self.pairs[split].filter(*known)
        new = rows.join(self.pairs["train"], on=["user", "item"], how="anti")
        return None if new.is_empty() else self._log(new)


def new_items(pairs: Mapping[str, pl.DataFrame], split: str) -> pl.DataFrame:
    """A row for each user with an item in the split that was in none before: `user`, `history` before it, `truth`."""
    earlier = ["train"] if split == "val" else ["train", "val"]
    before = pl.concat([pairs[part].select("user", "item") for part in earlier]).unique(maintain_order=True)
    new = pairs[split].select("user", "item").unique(maintain_order=True)
    new = new.join(before, on=["user", "item"], how="anti", maintain_order="left")
    truth = new.group_by("user", maintain_order=True).agg(pl.col("item").alias("truth")).sort("user")
    history = before.group_by("user", maintain_order=True).agg(pl.col("item").alias("history"))
    rows = truth.join(history, on="user", how="left", maintain_order="left")
    return rows.select("user", pl.col("history").fill_null([]), "truth")


class Epochs:
    """A log's batches under the names that tasks/training.py counts by."""

    def __init__(self, pairs: Pairs):
        self.pairs, self.per_epoch = pairs, len(pairs)

    @property
    def batch(self) -> int:
        """Batches given so far."""
        return self.pairs.step

    def state_dict(self) -> dict:
        return self.pairs.state_dict()

    def load_state_dict(self, state: Mapping) -> None:
        self.pairs.load_state_dict(dict(state))

    def __iter__(self):
        return iter(self.pairs)


def number(values: pl.Series, vocabulary: pl.Series) -> torch.Tensor:
    """Places of values in a sorted vocabulary that holds them all: (N,) int64."""
    return torch.from_numpy(vocabulary.search_sorted(values).to_numpy().astype("int64"))


def read_pairs(ingest: Path, chosen: Mapping, place: str) -> dict[str, pl.DataFrame]:
    """split -> `user`, `item` in the order of time.

    Raises:
        SettingsError: the log has no such event or column; names those it has.
    """
    if (ingest / "rows/train.parquet").is_file():  # of tasks/interactions.py
        if chosen:
            raise SettingsError(f"{place}.pairs is for logs of events; {ingest} holds pairs already, take it out")
        read = lambda split: pl.read_parquet(ingest / f"rows/{split}.parquet").drop("user", "item")
        return {split: _ordered(read(split).rename({"user_id": "user", "item_id": "item"})) for split in SPLITS}
    log = pl.scan_parquet(ingest / "events" / "**" / "*.parquet", hive_partitioning=False)
    schema, known = log.collect_schema(), list(read_json(ingest / "manifest.json")["events"])
    item = chosen.get("item", "item_id")
    events = chosen.get("events") or log_order(known)[1:]
    if absent := [event for event in events if event not in known]:
        raise SettingsError(f"{place}.pairs.events: no event is {', '.join(absent)}; the log has {', '.join(known)}")
    if item not in schema:
        raise SettingsError(f"{place}.pairs.item: the log has no column {item!r}; it has {', '.join(schema)}")
    chosen_rows = log.filter(pl.col("event_id").is_in(list(events)), pl.col(item).is_not_null())
    rows = chosen_rows.select(user="user_id", item=item, time="stime", split="split").collect(engine="streaming")
    return {split: _ordered(rows.filter(pl.col("split") == split)) for split in SPLITS}


SPLITS = ("train", "val", "test")


def log_order(events: list[str]) -> list[str]:
    """Events from the weakest to the strongest: MerRec's as in its funnel, others by how often they occur."""
    from tasks.datasets._schema import MERREC_EVENTS

    return sorted(events, key=lambda name: MERREC_EVENTS.index(name)) if set(events) <= set(MERREC_EVENTS) else events


def _ordered(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort("time", maintain_order=True) if "time" in rows.columns else rows
