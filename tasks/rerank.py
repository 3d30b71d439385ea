"""Reorder a recommender's lists so that they repeat themselves less: CDM taught on them, beside MMR and greedy DPP.

    {of: similar, data: sample, candidates: 100, places: 10, trade: 0.5, loss: 0.01, category: c0_id, settings: {...}}

    python -m tasks.rerank params.yaml:recommenders NAME INGEST PACKED OUT CHECKPOINTS

The recommender is frozen: its items' vectors and its scores, stretched to [0, 1] in each request, are all that is read.
Training requests are its own users; MMR, at `trade`, is the teacher, and needs no truth. How strongly each system
reorders is chosen on val: the most unlike lists among those that lose at most `loss` of the NDCG (a share); test is
read once, with what was chosen. Requests and truth are those that the recommender itself is judged by.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import models.recommend.rerank as rerank_models
from models import build
from models.recommend._summary import compare
from models.recommend.rerank._rerank import Rerank
from models.recommend.rerank.cdm import CDM, teacher_ranks
from tasks import bundle, plots
from tasks.batches import Batches
from tasks.candidates import Candidates, candidates, categories_of, lists_of, vectors_of
from tasks.command import run
from tasks.curve import write_curve
from tasks.files import digest, new_folder, read_json, write_json
from tasks.judge_variety import Judge
from tasks.recommender import kind_of, load
from tasks.recommenders._family import chosen_keys
from tasks.settings import SettingsError, read
from tasks.slots import slot
from tasks.training import Training, train, use_threads

__all__ = ["Reorder", "rerank"]

KEYS = ("of", "data", "candidates", "places", "trade", "loss", "category", "requests", "settings", "training")
TRAINING = {"epochs": 30, "batch": 64, "lr": 3e-3, "patience": 5}  # ours
HELD = 0.1  # of the training requests, on which the student is compared with its teacher
CHUNK = 256  # requests reordered at a time
# From harmless to strong; the first of each is the order of relevance, or nearly so.
STRENGTHS = {
    "mmr": (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
    "dpp": (0.999, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6, 0.3),
    "cdm": (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0),
}
KNOB = {"mmr": "trade", "dpp": "theta", "cdm": "gamma"}


@dataclass(frozen=True)
class Plan:
    """The settings of an entry.

    Args:
        of: recommender whose lists are reordered.
        data: its data set.
        candidates: N, how many of its best items are reordered.
        places: K, length of the lists.
        trade: MMR's lambda, as the student's teacher.
        loss: share of the NDCG that may be given up.
        category: a column of the log that says what kind of item it is; None measures by vectors alone, which is what
            the methods themselves look at.
        requests: users that the student learns from, at most.
    """

    of: str
    data: str
    candidates: int = 100
    places: int = 10
    trade: float = 0.5
    loss: float = 0.01
    category: str | None = None
    requests: int = 4000

    @classmethod
    def of_entry(cls, entry: Mapping, place: str) -> "Plan":
        """From params.yaml; a fault is named before anything is read."""
        chosen_keys(entry, KEYS, place)
        if absent := [key for key in ("of", "data") if key not in entry]:
            raise SettingsError(f"{place} lacks {' and '.join(absent)}; write {{of: similar, data: sample}}")
        plan = cls(**{key: value for key, value in entry.items() if key in cls.__dataclass_fields__})
        if not 1 <= plan.places < plan.candidates or not 0 <= plan.loss < 1 or plan.requests < 1:
            raise SettingsError(f"{place} needs 1 <= places < candidates, loss in [0, 1) and requests >= 1; got "
                                f"{plan.places}, {plan.candidates}, {plan.loss} and {plan.requests}")  # fmt: skip
        if fixed := {"width", "places", "gamma"} & set(entry.get("settings") or {}):
            raise SettingsError(f"{place}.settings: {', '.join(sorted(fixed))} follow from the recommender, `places` "
                                f"and `loss`; take them out")  # fmt: skip
        return plan


class Reorder:
    """A trained student on top of the recommender that it was trained for.

    Args:
        folder: of `rerank`.
        served: the recommender, from tasks/recommender.py `load` or tasks/top_k.py `open_recommender`.
        content: its content's SHA-256, where it is known.

    Raises:
        ValueError: the student was trained on another recommender's lists.
    """

    def __init__(self, folder: Path, served, content: str | None = None):
        about = read_json(folder / "rerank.json")
        if content not in (None, about["recommender"]):
            raise ValueError(f"{folder} was trained on the lists of {about['recommender'][:12]}, this recommender is "
                             f"{content[:12]}; train it again")  # fmt: skip
        self.served, self.vectors = served, vectors_of(served, about["of"])
        self.count, self.places = about["candidates"], about["places"]
        self.model = build("recommend.rerank", "cdm", self.vectors.shape[1], places=self.places, **about["settings"])
        self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model.eval().gamma = about["gamma"]

    def lists(self, requests: pl.DataFrame) -> pl.DataFrame:
        """`items` of each request: `places` ids, best first; see tasks/serve_lists.py for requests."""
        there = candidates(self.served, requests, self.count)
        return lists_of(self.served, there, _ordered(self.model, there, self.vectors, self.places))


def rerank(entry: Mapping, name: str, models: Mapping, ingest: Path, packed: Path, out: Path, checkpoints: Path | None):
    """Teach, choose and measure, and write the folder `out` whole or not at all.

    Args:
        entry: of `recommenders.rerank`.
        models: `recommenders.models`, which has the recommender.
        ingest: its data set.
        packed: its packed folder.
        out: takes model.safetensors, rerank.json, metrics.json {system: metrics, "gain": intervals}, sweep.csv (every
            strength on val), curve.csv, extra/*.png and run.json.

    Returns:
        The metrics.

    Raises:
        SettingsError: what cannot work, before any training.
    """
    use_threads()
    place = f"recommenders.rerank.{name}"
    plan, own = Plan.of_entry(entry, place), dict(entry.get("settings") or {})
    family, served = _family(plan, models, ingest, place), load(packed)
    vectors, category = vectors_of(served, plan.of), None
    if plan.category:
        log = pl.scan_parquet(ingest / "events" / "**" / "*.parquet", hive_partitioning=False)
        unit = (models[plan.of].get("pairs") or {}).get("item", "item_id")
        category = categories_of(log, unit, plan.category, served.items["item"], place)
    asked = {split: family.rows(split) for split in ("val", "test")}
    if empty := [split for split, rows in asked.items() if rows.is_empty()]:
        raise SettingsError(f"{ingest} has no request in {' and '.join(empty)} for {place}; give it longer splits")
    there = {split: candidates(served, rows, plan.candidates) for split, rows in asked.items()}
    teacher = build("recommend.rerank", "mmr", plan.trade)
    judge = Judge(served, family.log(), vectors, category, teacher, plan.places)

    torch.manual_seed(Training.seed)
    student = build("recommend.rerank", "cdm", vectors.shape[1], places=plan.places, **own)
    done = _teach(student, teacher, _own_users(served, family, plan), vectors, entry, plan, packed, checkpoints, name)
    sweep, chosen = _sweep(student, judge, there["val"], asked["val"], plan)
    metrics, spent = _compared(student, chosen, judge, there["test"], asked["test"], plan)
    state = {key: value.contiguous() for key, value in student.state_dict().items()}
    with new_folder(out) as folder:
        save_file(state, folder / "model.safetensors")
        write_json(folder / "rerank.json", {
            "of": plan.of, "recommender": bundle.sha256(packed / "bundle/manifest.json"), "candidates": plan.candidates,
            "places": plan.places, "gamma": chosen["cdm"], "settings": own,
        })  # fmt: skip
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "run.json", {"ms_a_request": spent, "seconds": done.seconds, "best_epoch": done.best_epoch,
                                         "requests": {split: len(rows) for split, rows in asked.items()},
                                         "agreement": done.best_score})  # fmt: skip
        sweep.write_csv(folder / "sweep.csv")
        write_curve(folder, done.curve, "score", picture="extra/curve.png")
        lines = {kind: list(rows.select("ilad", judge.ndcg).iter_rows())
                 for (kind,), rows in sweep.group_by("system", maintain_order=True)}  # fmt: skip
        (folder / "extra/trade.png").write_bytes(plots.paths(lines, "how unlike a list's items are (ILAD)", judge.ndcg))
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    told = [f"{kind} {metrics[kind]['ilad']:.3f} at {metrics[kind][judge.ndcg]:.4f}" for kind in ("relevance", *KNOB)]
    print(f"{name}: ILAD at {judge.ndcg} on {len(asked['test'])} test requests: {', '.join(told)}")
    return metrics


class _Examples(Batches):
    """Batches of taught requests."""

    def __init__(self, there: Candidates, ranks: Tensor, vectors: Tensor, settings: Training):
        super().__init__({"row": np.arange(len(ranks))}, settings.batch, settings.seed)
        self.there, self.ranks, self.vectors = there, ranks, vectors

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in super().__iter__():
            part = self.there[row := batch["row"]]
            yield {"relevance": part.relevance, "vectors": self.vectors[part.item], "rank": self.ranks[row],
                   "mask": part.mask}  # fmt: skip


def _family(plan: Plan, models: Mapping, ingest: Path, place: str):
    if plan.of not in models:
        raise SettingsError(f"{place}.of is {plan.of!r}; recommenders.models has {', '.join(models)}")
    if models[plan.of]["data"] != plan.data:
        raise SettingsError(f"{place}.data is {plan.data!r}, but {plan.of} is of {models[plan.of]['data']!r}")
    kind, method = kind_of(models[plan.of]["method"], plan.of)
    return import_module(f"tasks.recommenders.{kind}").Family(plan.of, method, models[plan.of], ingest)


def _own_users(served, family, plan: Plan) -> Candidates:
    """Candidates of some of the training's users, as many as the teacher can choose among."""
    users = family.log()["user"].unique().sort()
    users = users.sample(min(plan.requests, len(users)), seed=7).sort()
    there = candidates(served, users.to_frame("user"), plan.candidates)
    return there[(there.mask.sum(1) > plan.places).nonzero().flatten()]


def _teach(student: CDM, teacher: Rerank, there: Candidates, vectors: Tensor, entry: Mapping, plan: Plan, packed: Path,
           checkpoints: Path | None, name: str):  # fmt: skip
    """Train the student in place; what the run was."""
    settings = Training.read(TRAINING | dict(entry.get("training") or {}))
    held = int(len(there) * HELD)
    if held < 1:
        raise SettingsError(f"{plan.of} has {len(there)} users with more than {plan.places} candidates; a student "
                            f"needs {round(1 / HELD)} at least")  # fmt: skip
    ranks = torch.cat([teacher_ranks(teacher, part.relevance, vectors[part.item], part.mask) for part in _parts(there)])
    rows = torch.randperm(len(there), generator=torch.Generator().manual_seed(settings.seed))
    mine, others = rows[held:], rows[:held]
    kept = there[others]

    @torch.no_grad()
    def validate() -> dict[str, float]:
        right = []
        for part, rank in zip(_parts(kept), ranks[others].split(CHUNK), strict=True):
            z = student.logits(*(tensor.to(device) for tensor in (part.relevance, vectors[part.item], part.mask))).cpu()
            right.append((rank.gather(1, z.topk(plan.places).indices) < plan.places).double().mean(1))
        return {"score": float(torch.cat(right).mean())}  # share of the teacher's list that the student would show

    with slot() as device:
        student.to(device)
        examples = _Examples(there[mine], ranks[mine], vectors, settings)
        # A run is known by what decides its result; a checkpoint of any other run is never picked up.
        known = repr([entry, bundle.sha256(packed / "bundle/manifest.json"), digest(Path(rerank_models.__path__[0]))])
        folder = checkpoints and checkpoints / hashlib.sha256(known.encode()).hexdigest()[:16]
        done = train(student, examples, settings, validate, f"rerank {name}", folder, device)
    student.cpu().eval()
    return done


def _sweep(student: CDM, judge: Judge, there: Candidates, asked: pl.DataFrame, plan: Plan):
    """Every strength on val, and the chosen one of each system."""
    rows, chosen = [], {}
    for kind, strengths in STRENGTHS.items():
        mine = []
        for strength in strengths:
            lists = _ordered(_system(kind, strength, student), there, judge.vectors, plan.places)
            mine.append({"system": kind, "strength": strength} | judge(lists, there, asked)[1])
        bound = (1 - plan.loss) * mine[0][judge.ndcg]
        fit = [row for row in mine if row[judge.ndcg] >= bound]
        chosen[kind] = max(fit, key=lambda row: row["ilad"])["strength"]
        rows += mine
    return pl.DataFrame(rows, infer_schema_length=None), chosen


def _compared(student: CDM, chosen: Mapping, judge: Judge, there: Candidates, asked: pl.DataFrame, plan: Plan):
    """Every system as it was chosen: metrics, with the intervals of the student's gain, and milliseconds a request."""
    systems = {"relevance": build("recommend.rerank", "mmr", 1.0)}
    systems |= {kind: _system(kind, strength, student) for kind, strength in chosen.items()}
    each, metrics, spent = {}, {}, {}
    for kind, system in systems.items():
        started = time.perf_counter()
        lists = _ordered(system, there, judge.vectors, plan.places)
        spent[kind] = 1000 * (time.perf_counter() - started) / len(lists)
        each[kind], found = judge(lists, there, asked)
        metrics[kind] = found | ({KNOB[kind]: chosen[kind]} if kind in KNOB else {})
    metrics["gain"] = {
        f"{metric} of cdm over {other}": list(compare(each["cdm"][metric], each[other][metric]))
        for other in ("relevance", "mmr", "dpp")
        for metric in judge.compared
    }
    return metrics, spent


def _system(kind: str, strength: float, student: CDM) -> Rerank:
    if kind == "cdm":
        student.gamma = strength
        return student
    return build("recommend.rerank", kind, strength)


def _ordered(system: Rerank, there: Candidates, vectors: Tensor, places: int) -> Tensor:
    parts = [system.order(part.relevance, vectors[part.item], places, part.mask) for part in _parts(there)]
    return torch.cat(parts) if parts else torch.zeros(0, places, dtype=torch.int64)


def _parts(there: Candidates) -> list[Candidates]:
    return [there[part] for part in torch.arange(len(there)).split(CHUNK)] if len(there) else []


def main(address: str, name: str, ingest: str, packed: str, out: str, checkpoints: str) -> None:
    """python -m tasks.rerank params.yaml:recommenders NAME INGEST PACKED OUT CHECKPOINTS"""
    chosen = read(address)
    entry = read(f"{address}.rerank.{name}")
    rerank(entry, name, chosen["models"], Path(ingest), Path(packed), Path(out), Path(checkpoints))


if __name__ == "__main__":
    run(main)
