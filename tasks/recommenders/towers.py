"""Towers: users and described items -> a model of models/recommend/towers/ that ranks also items it never saw.

    {method: towers/two_tower, data: sample, pairs: {item: item_id}, fields: {words: name}, training: {epochs: 5}}

Pairs and requests are those of tasks/recommenders/retrieval.py, so both kinds can be compared. An item is known by its
fields alone (unless its id is named among them), as they were at its first event: the catalogue that is served holds
every item of the log, those that training never saw too. Training draws its items, random ones included, from the
training split only.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models import build
from models.recommend._ranking import judged
from models.recommend._top import top
from models.recommend.retrieval._log import Log
from models.recommend.towers._towers import Fields, described, recent
from tasks.batches import Batches
from tasks.encoder import Encoder
from tasks.files import digest, write_text
from tasks.recommenders._family import chosen_keys, settings_of
from tasks.recommenders._impressions import impressions
from tasks.recommenders._item_fields import ItemFields
from tasks.recommenders.retrieval import log_order, new_items, read_pairs
from tasks.settings import SettingsError
from tasks.training import Trained, Training, train

__all__ = ["Family"]

KEYS = ("method", "data", "pairs", "fields", "reading", "settings", "training")
PAIRS = ("events", "item")
FIELDS = ("user", "item", "numbers", "words", "history", "min_count")
TRAINING = {"epochs": 10, "batch": 256, "patience": 3}  # ours
SPLITS = ("train", "val", "test")
CHUNK = 256  # requests ranked at a time


class Family:
    """See tasks/recommenders/_family.py.

    Attributes:
        model: of the method the part that is served.
    """

    def __init__(self, name: str, method: str, entry: Mapping, ingest: Path):
        place = f"recommenders.models.{name}"
        chosen_keys(entry, KEYS, place)
        chosen_keys(entry.get("pairs") or {}, PAIRS, f"{place}.pairs")
        chosen_keys(told := dict(entry.get("fields") or {}), FIELDS, f"{place}.fields")
        if (ingest / "rows/train.parquet").is_file():
            raise SettingsError(
                f"{place}: {ingest} holds pairs of ids, and towers need a log that describes its items; take a method "
                f"of retrieval/"
            )
        if "reading" in entry and method != "dmtl":
            raise SettingsError(f"{place}.reading is for towers/dmtl; take it out")
        self.name, self.method, self.ingest, self.place = name, method, ingest, place
        self.settings = settings_of("towers", method, entry, place)
        self.length, self.reading = told.get("history", 20), entry.get("reading", "event")
        if not isinstance(self.length, int) or self.length < 1:
            raise SettingsError(f"{place}.fields.history is how many items of a history are read, 1 or more; got "
                                f"{self.length!r}")  # fmt: skip
        chosen = entry.get("pairs") or {}
        self.unit, self.chosen = chosen.get("item", "item_id"), chosen
        self.pairs = read_pairs(ingest, chosen, place)
        if self.pairs["train"].is_empty():
            raise SettingsError(f"{ingest} has no training pair for {place}; look at its pairs: {{events, item}}")
        self.told = told
        self.fingerprint = f"{digest(ingest / 'manifest.json')} {dict(chosen)} {told} {self.reading}"

    def train(self, training: Mapping, checkpoints: Path | None, device: str) -> Trained:
        """Steps until val is no longer better."""
        settings = Training.read(TRAINING | dict(training))
        torch.manual_seed(settings.seed)
        parts = (self.user_fields, self.item_fields.fields, self._drawn)
        whole = build("recommend.towers", self.method, *parts, **self.settings).to(device)
        requests = self.rows("val").filter(pl.col("truth").list.len() > 0)
        if requests.is_empty():
            raise SettingsError(f"val has no new pair for {self.place}; give the data set a longer val split")

        def validate() -> dict[str, float]:
            found = self._ranked(whole.towers, requests, device)
            return {f"val_{key}": value for key, value in found.items()} | {"score": found["recall@20"]}

        rows = self._impressed(settings) if self.method == "dmtl" else self._bought(settings)
        examples = Examples(self, rows, settings, whole.negatives)
        done = train(whole, examples, settings, validate, self.method, checkpoints, device)
        self.model = whole.towers.cpu()  # a teacher and a queue are not served
        return done

    def rows(self, split: str) -> pl.DataFrame:
        """A row for each user with a new item in the split: `user`, `history` before it, `truth`."""
        return new_items(self.pairs, split)

    def log(self) -> pl.DataFrame:
        return self.pairs["train"].select("user", "item").unique(maintain_order=True)

    def bundle(self, folder: Path) -> dict:
        count = self.log().group_by("item").len("count")
        table = self.items.select("item").join(count, on="item", how="left", maintain_order="left")
        table.with_columns(pl.col("count").fill_null(0)).write_parquet(folder / "items.parquet")
        save_file({"item": self.item, "item_numbers": self.item_numbers}, folder / "catalogue.safetensors")
        self.users.to_frame("user").write_parquet(folder / "users.parquet")
        bought = self._trained
        pairs = {name: torch.from_numpy(bought[name].to_numpy().astype("int32")) for name in ("user", "item")}
        save_file(pairs | {"fields": self.user}, folder / "users.safetensors")
        write_text(folder / "item_fields.json", self.item_fields.to_json())
        parts = [asdict(self.user_fields), asdict(self.item_fields.fields)]
        return {"repeats": False, "fields": parts, "items": self._drawn, "length": self.length, "unit": self.unit,
                "user_type": str(self.users.dtype)} | self._told  # fmt: skip

    @property
    def _told(self) -> dict:
        return {"labels": self._read[1]} if self.method == "dmtl" else {}

    @property
    def _drawn(self) -> int:
        return int(self.items["trained"].sum())

    def _events(self) -> pl.LazyFrame:
        log = pl.scan_parquet(self.ingest / "events" / "**" / "*.parquet", hive_partitioning=False)
        return log.filter(pl.col(self.unit).is_not_null())

    @property
    def items(self) -> pl.DataFrame:
        """`item` and `trained` (training has an event of it), sorted."""
        return self._catalogue[0]

    @property
    def item(self) -> Tensor:
        """Ids (I, F) of the items' fields."""
        return self._catalogue[1]

    @property
    def item_numbers(self) -> Tensor:
        """(I, M) float32."""
        return self._catalogue[2]

    @cached_property
    def item_fields(self) -> ItemFields:
        return ItemFields.fit(self._events().filter(pl.col("split") == "train"), self.told, self.place)

    @cached_property
    def _catalogue(self) -> tuple[pl.DataFrame, Tensor, Tensor]:
        """The items, and what describes each at its first event."""
        log = self._events()
        first = log.sort("stime", "user").unique(self.unit, keep="first", maintain_order=True)
        trained = log.filter(pl.col("split") == "train").select(self.unit).unique().with_columns(trained=pl.lit(True))
        found = first.drop("split", "stime").join(trained, on=self.unit, how="left").with_columns(item=self.unit)
        found = found.with_columns(pl.col("trained").fill_null(False)).sort("item").collect()
        fields = map(torch.from_numpy, self.item_fields.encode(found.drop("item", "trained")))
        return found.select("item", "trained"), *fields

    @cached_property
    def users(self) -> pl.Series:
        """Those of the training pairs."""
        return self.pairs["train"]["user"].unique().sort()

    @property
    def user(self) -> Tensor:
        """Ids (U + 1, F) of the users' fields; the last row is a stranger's."""
        return self._people[0]

    @property
    def user_fields(self) -> Fields:
        return self._people[1]

    @cached_property
    def _people(self) -> tuple[Tensor, Fields]:
        users, log, names = self.users, self._events(), list(self.told.get("user", ["user_id"]))
        if absent := [name for name in names if name not in log.collect_schema()]:
            raise SettingsError(f"{self.place}.fields.user: the log has no column {', '.join(absent)}")
        if not names:
            return torch.zeros(len(users) + 1, 0, dtype=torch.int32), Fields()
        own = [pl.col(name).sort_by("stime").first() for name in names if name != "user_id"]
        people = log.filter(pl.col("split") == "train").group_by("user_id").agg(*own).collect(engine="streaming")
        people = users.to_frame("user_id").join(people, on="user_id", how="left", maintain_order="left")
        pairs = self.pairs["train"].select(user_id="user").join(people, on="user_id", how="left")
        encoder = Encoder.fit(pairs, names, [], min_count=self.told.get("min_count", 2))
        ids = torch.from_numpy(encoder.transform(people)[0])
        return torch.cat([ids, torch.zeros(1, len(names), dtype=torch.int32)]), Fields(tuple(encoder.sizes))

    @cached_property
    def _trained(self) -> pl.DataFrame:
        """Training pairs as numbers `user`, `item`, with `time`: by user, then time; of a pair the first."""
        first = self.pairs["train"].unique(["user", "item"], keep="first", maintain_order=True)
        return self._numbered(first).sort("user", "time", maintain_order=True)

    @cached_property
    def _read(self) -> tuple[pl.DataFrame, dict]:
        from tasks.files import read_json

        known = list(read_json(self.ingest / "manifest.json")["events"])
        stronger = self.chosen.get("events") or log_order(known)[1:]
        return impressions(self.ingest, self.unit, stronger, self.reading, self.place)

    def _numbered(self, rows: pl.DataFrame) -> pl.DataFrame:
        """People's own ids as places; a user that the training pairs do not have is the stranger."""
        user = pl.DataFrame({"user": self.users, "u": np.arange(len(self.users))})
        item = pl.DataFrame({"item": self.items["item"], "i": np.arange(len(self.items))})
        rows = rows.join(user, on="user", how="left", maintain_order="left")
        rows = rows.join(item, on="item", how="left", maintain_order="left")
        rows = rows.with_columns(user=pl.col("u").fill_null(len(self.users)), item="i")
        return rows.drop("u", "i")

    def _bought(self, settings: Training) -> dict[str, np.ndarray]:
        """An example for each training pair: the item, after those the user had before."""
        rows = self._trained
        return {"user": rows["user"].to_numpy(), "item": rows["item"].to_numpy(), "end": np.arange(len(rows))}

    def _impressed(self, settings: Training) -> dict[str, np.ndarray]:
        """An example for each impression, after the pairs of earlier seconds."""
        rows, pairs = self._numbered(self._read[0]), self._trained
        low = min(rows["time"].min(), pairs["time"].min())
        second = lambda frame: (frame["time"] - low).dt.total_seconds().to_numpy()
        span = int(max(second(rows).max(), second(pairs).max())) + 1
        key = lambda frame: frame["user"].to_numpy() * span + second(frame)
        end = np.searchsorted(key(pairs), key(rows), side="left")
        return {"user": rows["user"].to_numpy(), "item": rows["item"].to_numpy(), "end": end,
                "reading": rows["reading"].to_numpy()}  # fmt: skip

    @torch.inference_mode()
    def _ranked(self, towers: nn.Module, requests: pl.DataFrame, device: str) -> dict[str, float]:
        """Recall and NDCG at 20 of requests, over the items that training or the split's pairs know."""
        long = lambda name: self._numbered(requests.select("user", item=name).with_row_index("row").explode("item")
                                           .drop_nulls("item"))  # fmt: skip
        truth, history = long("truth"), long("history")
        tensor = lambda frame, name: torch.from_numpy(frame[name].to_numpy().astype("int64"))
        users = tensor(self._numbered(requests.select("user", item=pl.lit(self.items["item"][0]))), "user")
        row, item = tensor(history, "row"), tensor(history, "item")
        table = recent(row, item, len(requests), self.length)
        ids, numbers = self.item.to(device), self.item_numbers.to(device)
        vectors = torch.cat(
            [towers.item_vectors(*part) for part in zip(ids.split(8192), numbers.split(8192), strict=True)]
        )
        lists = []
        for part in torch.arange(len(requests)).split(CHUNK):
            own = self.user[users[part]].to(device)
            read = described(table[part].to(device), ids, numbers)
            asked = towers.user_vectors(own, numbers.new_zeros(len(part), 0), *read.values())
            score = towers.score(asked, vectors).float().cpu()
            here = (row >= part[0]) & (row <= part[-1])
            score[row[here] - part[0], item[here]] = -torch.inf
            lists.append(top(score, min(20, score.shape[1]))[1])
        rows = torch.arange(len(requests))
        wanted = Log.of(tensor(truth, "row"), tensor(truth, "item"), len(requests), len(self.items))
        found = judged(torch.cat(lists), rows, wanted, (20,)).metrics
        return {name: float(found[name].mean()) for name in ("recall@20", "ndcg@20")}


class Examples(Batches):
    """Batches of a tower's examples.

    Args:
        rows: `user`, `item` (places), `end` (of the history among the training pairs), and `reading` of impressions.
        negatives: random items: of the whole batch; of each row where rows have `reading`.
    """

    def __init__(self, family: Family, rows: Mapping[str, np.ndarray], settings: Training, negatives: int):
        super().__init__({"row": np.arange(len(rows["user"]))}, settings.batch, settings.seed)
        self.family, self.examples, self.negatives = family, rows, negatives
        bought = family._trained
        user = torch.from_numpy(bought["user"].to_numpy().astype("int64"))
        count = user.bincount(minlength=len(family.users) + 1)
        self.start = (count.cumsum(0) - count).numpy()
        self.bought = bought["item"].to_numpy()
        self.drawn = np.flatnonzero(family.items["trained"].to_numpy())  # items of the training split
        self.number = np.cumsum(family.items["trained"].to_numpy()) - 1

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in super().__iter__():
            row = batch["row"].numpy()
            # Of the seed and the batch's number alone, so that a resumed run draws the same.
            random = np.random.default_rng([self.seed, 1, self.batch])
            yield self._impressions(row, random) if "reading" in self.examples else self._positives(row, random)

    def _positives(self, row: np.ndarray, random: np.random.Generator) -> dict[str, Tensor]:
        item = self.examples["item"][row]
        found = self._user(row) | self._item(item) | {"item_id": torch.from_numpy(self.number[item])}
        if self.negatives:
            place = random.integers(0, len(self.drawn), self.negatives)
            drawn = self._item(self.drawn[place], "negative")
            found |= drawn | {"negative_id": torch.from_numpy(place)}
        return found

    def _impressions(self, row: np.ndarray, random: np.random.Generator) -> dict[str, Tensor]:
        beside = self.drawn[random.integers(0, len(self.drawn), len(row) * self.negatives)]
        click = np.repeat([1.0, 0.0], [len(row), len(beside)]).astype(np.float32)
        reading = np.concatenate([self.examples["reading"][row], np.zeros(len(beside), np.float32)])
        labels = {"click": torch.from_numpy(click), "reading": torch.from_numpy(reading)}
        asked = np.concatenate([row, np.repeat(row, self.negatives)])
        return self._user(asked) | self._item(np.concatenate([self.examples["item"][row], beside])) | labels

    def _user(self, row: np.ndarray) -> dict[str, Tensor]:
        user, family = self.examples["user"][row], self.family
        place = self.examples["end"][row][:, None] - np.arange(family.length, 0, -1)
        history = np.where(place >= self.start[user][:, None], self.bought[np.maximum(place, 0)], -1)
        told = {"user": family.user[torch.from_numpy(user)], "user_numbers": torch.zeros(len(user), 0)}
        return told | described(torch.from_numpy(history), family.item, family.item_numbers)

    def _item(self, item: np.ndarray, name: str = "item") -> dict[str, Tensor]:
        place = torch.from_numpy(item)
        return {name: self.family.item[place], f"{name}_numbers": self.family.item_numbers[place]}
