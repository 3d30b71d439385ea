"""The six groups of the MerRec benchmark: each trains one model and judges it on test, with intervals over users.

    ctr           the chance that a shown item is viewed, against sampled impressions
    multitask     several events of one row at once
    session       the next item, ranked among all items of training
    acceleration  the same with blocks that may be skipped, and what that saves of a single request's time
    multistep     the next four listings by their texts, among all listings, new ones included; their categories, brands
    intent        whether a session ends in a purchase; MerRec's sixth task is not public, this one is ours

Splits are by time and models are selected on val; test is looked at once, after the training.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from models import build
from models.metrics import auc
from tasks.batches import Batches, in_order, load_split
from tasks.contents import groups_of, words_of
from tasks.evaluate import predict
from tasks.files import read_json
from tasks.labels import read_tasks
from tasks.merrec_judges import Floor, Value, latency, of_ranking, of_scores, of_steps, of_values
from tasks.sequences import Cases, intents, read_log, sequences
from tasks.train import fit_backbone, labels_of
from tasks.training import Trained, Training, train

__all__ = ["GROUPS", "Data", "Found"]

COLUMNS = ("product_id", "name", "brand_id", "brand_name", "c0_id", "c1_id", "c2_id", "c2_name", "sequence_id")


@dataclass
class Found:
    """One model of one seed."""

    metrics: dict[str, Value]
    parameters: int = 0
    epochs: int = 0
    seconds: float = 0.0  # of training, validation included


@dataclass
class Data:
    """What the groups read of a data set; each part is made when it is first asked for."""

    ingest: Path
    features: Path
    events: tuple[str, ...]
    tasks: Mapping[str, Mapping]

    @cached_property
    def manifest(self) -> dict:
        return read_json(self.features / "manifest.json")

    @cached_property
    def rows(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        return {split: load_split(self.features, split) for split in ("train", "val", "test")}

    @cached_property
    def labels(self) -> dict[str, Tensor]:
        tasks = read_tasks(self.tasks, self.ingest, self.manifest)
        return {split: labels_of(tasks, split, self.ingest, self.features) for split in self.rows}

    @cached_property
    def user(self) -> Tensor:
        """Of each test row."""
        return torch.from_numpy(
            pl.read_parquet(self.features / "rows/test.parquet", columns=["user"])["user"].to_numpy().astype(np.int64)
        )

    @cached_property
    def log(self) -> pl.DataFrame:
        return read_log(self.ingest, COLUMNS)


def ctr(data: Data, settings: Mapping, name: str, own: Mapping, seed: int, checkpoints: Path, device: str) -> Found:
    """A click model on the task that `settings["task"]` names."""
    column = list(data.tasks).index(settings["task"])
    training = Training.read({**settings["training"], "seed": seed})
    torch.manual_seed(seed)
    model = build("recommend.ctr", name, data.manifest["sizes"], len(data.manifest["numerical"]), **own).to(device)
    label = {split: data.labels[split][:, column] for split in data.rows}
    asked = np.flatnonzero(label["train"].numpy() >= 0)
    categorical, numerical = data.rows["train"]
    arrays = {"categorical": categorical, "numerical": numerical, "label": label["train"].numpy()}
    batches = Batches(arrays, training.batch, seed, _some(asked, settings.get("rows"), seed))

    def validate() -> dict[str, float]:
        score, here = predict(model, *data.rows["val"]), label["val"] >= 0
        return {"score": float(auc(score[here], label["val"][here]))}

    trained = train(model, batches, training, validate, f"ctr {name}", checkpoints, device)
    score, here = predict(model, *data.rows["test"]), label["test"] >= 0
    return _found(model, trained, of_scores(score[here], label["test"][here], data.user[here]))


def multitask(
    data: Data, settings: Mapping, name: str, own: Mapping, seed: int, checkpoints: Path, device: str
) -> Found:
    """A multi-task model of the tasks that `settings["tasks"]` lists."""
    tasks = settings["tasks"]
    columns = [list(data.tasks).index(task) for task in tasks]
    training = Training.read({**settings["training"], "seed": seed})
    torch.manual_seed(seed)
    model = build("recommend", name, data.manifest["sizes"], len(data.manifest["numerical"]), len(tasks), **own).to(
        device
    )
    labels = {split: data.labels[split][:, columns] for split in data.rows}
    asked = np.flatnonzero((labels["train"] >= 0).any(1).numpy())
    some = _some(asked, settings.get("rows"), seed)
    rows = {**data.rows, "train": tuple(part[some] for part in data.rows["train"])}
    trained = fit_backbone(
        model, tasks, rows, {**labels, "train": labels["train"][some]}, training, checkpoints, device
    )
    score, found = predict(model, *data.rows["test"]), {}
    for place, task in enumerate(tasks):
        here = labels["test"][:, place] >= 0
        told = of_scores(score[here, place], labels["test"][here, place], data.user[here])
        found |= {f"{task} {metric}": value for metric, value in told.items()}
    return _found(model, trained, found)


def session(data: Data, settings: Mapping, name: str, own: Mapping, seed: int, checkpoints: Path, device: str) -> Found:
    """A next-item model, or a floor."""
    rows = _rows(data, settings)
    if name in ("popularity", "item_knn"):
        return Found(of_ranking(Floor(name, rows.train, rows.vocabulary.items).score, _few(rows.test, settings), rows))
    model, trained = _train_session(rows, settings, name, own, seed, checkpoints, device)
    return _found(model, trained, of_ranking(model.score, _few(rows.test, settings), rows))


def acceleration(
    data: Data, settings: Mapping, name: str, own: Mapping, seed: int, checkpoints: Path, device: str
) -> Found:
    """A model whose blocks may be skipped: quality with and without, the blocks that run, milliseconds a request."""
    rows = _rows(data, settings)
    model, trained = _train_session(rows, settings, name, own, seed, checkpoints, device)
    cases = _few(rows.test, settings)
    found = of_ranking(model.score, cases, rows)
    found |= {f"{metric}, all blocks": value for metric, value in of_ranking(model.score_all, cases, rows).items()}
    items = torch.from_numpy(cases.items)
    runs = torch.cat([model.wanted(part.to(device)).float().mean(1).cpu() for part in items.split(256)])
    found["blocks run"] = of_values(runs, torch.from_numpy(cases.user))
    found |= latency(model, items[: settings.get("requests", 200)].to(device))
    return _found(model, trained, found)


def multistep(
    data: Data, settings: Mapping, name: str, own: Mapping, seed: int, checkpoints: Path, device: str
) -> Found:
    """Listings, categories and brands of the next few steps, by content."""
    own, unit = dict(own), settings.get("unit", "item")
    steps = own.get("steps", 4)
    key = settings.get("key", ["user", "session"])
    rows = sequences(data.log, key, unit, own.get("length", 22), settings.get("least", 10), steps=steps, whole=True)
    content, words = words_of(data.log, rows.vocabulary, unit, settings.get("text", ["name", "brand_name", "c2_name"]))
    training = Training.read({**settings["training"], "seed": seed})
    torch.manual_seed(seed)
    model = build("recommend.session", name, rows.vocabulary.items, torch.from_numpy(content), **own, words=words).to(
        device
    )
    some = _some(np.arange(len(rows.steps)), settings.get("rows"), seed)
    arrays = {"items": rows.steps.items, "targets": rows.steps.targets}
    groups = {}
    for label, column in (("category", "c2_id"), ("brand", "brand_id")):
        if column in data.log.columns:
            number, count = groups_of(data.log, rows.vocabulary, column, unit)
            groups[label] = torch.from_numpy(number), count
    known = np.zeros(rows.vocabulary.items + 1, bool)
    known[rows.vocabulary.encode(data.log.filter(pl.col("split") == "train")[unit].unique())] = True
    train_cases = _few(rows.val, settings)

    def validate() -> dict[str, float]:
        found = of_steps(model, train_cases, {}, None, device)
        return {"score": found["step 1 recall@20"]["value"]}

    trained = train(model, Batches(arrays, training.batch, seed, some), training, validate, name, checkpoints, device)
    return _found(model, trained, of_steps(model, _few(rows.test, settings), groups, torch.from_numpy(known), device))


def intent(data: Data, settings: Mapping, name: str, own: Mapping, seed: int, checkpoints: Path, device: str) -> Found:
    """Whether a purchase follows in the session."""
    how = {key: settings[key] for key in ("buys", "key", "unit", "length", "min_count") if key in settings}
    cases, vocabulary = intents(data.log, data.events, **how)
    training = Training.read({**settings["training"], "seed": seed})
    torch.manual_seed(seed)
    model = build("recommend.session", name, vocabulary.items, len(data.events), **own).to(device)
    batches = Batches(cases["train"].arrays(), training.batch, seed,
                      _some(np.arange(len(cases["train"].label)), settings.get("rows"), seed))  # fmt: skip

    @torch.no_grad()
    def scored(split: str) -> tuple[Tensor, Tensor]:
        told, model_in = cases[split], model.eval()
        parts = in_order({key: value for key, value in told.arrays().items() if key != "label"}, 4096)
        score = torch.cat(
            [model_in.score(**{key: value.to(device) for key, value in part.items()}).cpu() for part in parts]
        )
        return score, torch.from_numpy(told.label)

    trained = train(model, batches, training, lambda: {"score": float(auc(*scored("val")))}, name, checkpoints, device)
    return _found(model, trained, of_scores(*scored("test"), torch.from_numpy(cases["test"].user)))


GROUPS: dict[str, Callable[..., Found]] = {
    "ctr": ctr,
    "multitask": multitask,
    "session": session,
    "acceleration": acceleration,
    "multistep": multistep,
    "intent": intent,
}


def _rows(data: Data, settings: Mapping):
    unit, key = settings.get("unit", "product_id"), settings.get("key", ["user", "session"])
    return sequences(
        data.log, key, unit, settings.get("length", 20), settings.get("least", 2), settings.get("min_count", 1)
    )


def _train_session(rows, settings: Mapping, name: str, own: Mapping, seed: int, checkpoints: Path, device: str):
    training = Training.read({**settings["training"], "seed": seed})
    torch.manual_seed(seed)
    model = build("recommend.session", name, rows.vocabulary.items, **own).to(device)
    some = _some(np.arange(len(rows.train)), settings.get("rows"), seed)
    cases = _few(rows.val, settings)

    def validate() -> dict[str, float]:
        return {"score": of_ranking(model.score, cases, rows)["ndcg@20"]["value"]}

    batches = Batches({"items": rows.train}, training.batch, seed, some)
    return model, train(model, batches, training, validate, name, checkpoints, device)


def _some(rows: np.ndarray, most: int | None, seed: int) -> np.ndarray:
    """At most so many of the rows, evenly drawn, in their order."""
    if most is None or most >= len(rows):
        return rows
    return np.sort(np.random.default_rng([seed, 3]).permutation(rows)[:most])


def _few(cases: Cases, settings: Mapping) -> Cases:
    """At most `cases` of the cases, the same for every model and seed."""
    kept = _some(np.arange(len(cases)), settings.get("cases"), 0)
    return Cases(cases.items[kept], cases.targets[kept], cases.user[kept])


def _found(model: nn.Module, trained: Trained, metrics: dict[str, Value]) -> Found:
    return Found(metrics, sum(p.numel() for p in model.parameters()), trained.best_epoch, trained.seconds)
