"""Who will buy a new release: customers and described items in one metric space, then calibrated probabilities.

    point of an item        f(description), the content part of CML (models/recommend/retrieval/cml.py)
    point of a customer     learned; of a casual one, the mean of the points bought, halved in weight each half-life
    P(buy | u, i)           sigmoid(b_0 - b_1 z(u, i) + b_2 ln(1 + purchases_u) + b_3 years since the last_u + b_tier)
    z(u, i)                 d(u, i) in deviations from the customer's mean over the released items: training makes the
                            distances of one customer comparable, not those of two
    audience of i           sum_u P(buy | u, i)

Trained on what was released before the validation window; the probabilities are fitted on that window, with the points
frozen; measured on everything released after it. Beside it a model without collaborative signal: the cosine of a
description and the mean description bought, with the same customer terms, calibrated alike; and customer terms alone.

    python -m tasks.release params.yaml:recommenders.releases NAME artifacts/ingest/movies OUT

Source: Campo et al., 2018, arXiv:1803.00202, for the task; its networks are not published in the part that could be
read, so the probabilities, casual customers and item dropout are ours.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models import build
from models.metrics import auc, calibration_error, reliability
from models.recommend._calibration import Platt
from models.recommend._ranking import rank
from models.recommend._summary import compare
from models.recommend.retrieval._log import Log
from models.recommend.retrieval.cml import CML, as_product
from tasks import plots
from tasks.command import run
from tasks.curve import write_curve
from tasks.descriptions import Describer, describer
from tasks.files import new_folder, read_json, write_json
from tasks.settings import SettingsError, read
from tasks.training import use_threads
from tasks.windows import Available, Window, Windows, windows

__all__ = ["Customers", "Plan", "predict", "release"]

DAYS = 365.25
TIERS = ("casual", "regular", "heavy")  # thirds of the customers by purchases
SYSTEMS = ("metric", "content", "customer")
COLUMNS = ("user_id", "item_id", "stime", "name", "overview", "release_date")


@dataclass(frozen=True)
class Plan:
    """The settings of a release system.

    Args:
        validation: first day of release of the validation window, as 2012-01-01. Alike:
        test: first day after it.
        describe: what reads descriptions, see tasks/descriptions.py.
        words: width of the vectors of "words".
        model: settings of CML.
        epochs: at most so many passes over the purchases.
        batch: purchases a step.
        learning_rate: Adam's, of f.
        table_rate: Adam's, of the customers' and items' own points.
        patience: epochs without a better Recall@20 of the validation window's items, which the model has not seen.
        casual: a customer with fewer purchases is placed by what was bought.
        half_life: years after which a purchase counts half there.
        seed: of everything.
    """

    validation: date
    test: date
    describe: str = "words"
    words: int = 128
    model: Mapping = None
    epochs: int = 40
    batch: int = 2048
    learning_rate: float = 3e-4
    table_rate: float = 3e-3
    patience: int = 5
    casual: int = 5
    half_life: float = 2.0
    seed: int = 7

    @classmethod
    def of(cls, settings: Mapping) -> "Plan":
        """From params.yaml; names every unknown or missing setting."""
        known = list(cls.__dataclass_fields__)
        unknown, absent = sorted(set(settings) - set(known)), [n for n in ("validation", "test") if n not in settings]
        if unknown or absent:
            raise SettingsError(f"release: unknown settings {unknown}, missing {absent}; it takes {', '.join(known)}")
        days = {name: date.fromisoformat(str(settings[name])) for name in ("validation", "test")}
        return cls(**{**settings, **days, "model": dict(settings.get("model") or {})})


@dataclass(frozen=True)
class Customers:
    """Everything about customers that a probability needs, U of them."""

    point: Tensor  # (U, K) in the metric space
    taste: Tensor  # (U, F) mean description bought, length 1
    terms: Tensor  # (U, 4) ln(1 + purchases), years since the last, regular, heavy
    tier: Tensor  # (U,) place in TIERS
    metric_level: Tensor  # (U, 2) mean and deviation of a customer's -d over the released items
    content_level: Tensor  # (U, 2) the same of the cosine


def release(settings: Mapping, events: pl.DataFrame, out: str | Path) -> dict:
    """Train, calibrate and measure a release system.

    Args:
        settings: see Plan.
        events: purchases, see tasks/windows.py.
        out: takes model.safetensors, system.json, items.parquet (what was trained on), audience.parquet (each test
            release: expected and true audience, by system), reliability.png, curve.csv, curve.png and metrics.json.

    Returns:
        The metrics, and the epochs under `curve`.

    Raises:
        SettingsError: an unknown or missing setting.
        SplitEmpty: a window without purchases.
    """
    plan = Plan.of(settings)
    cut = windows(events, plan.validation, plan.test)
    reader = describer(plan.describe, plan.words).fit(cut.train.items["overview"].to_list())
    text = {name: _texts(reader, getattr(cut, name)) for name in ("train", "validation", "test")}
    model, curve = train(plan, cut, text)
    who = customers(model, cut.train, text["train"], plan)
    calibrators, metrics, audiences, bins = {}, {}, {"true": cut.test.log.item_degree.tolist()}, {}
    scores = {name: {window: score(name, model, who, text[window]) for window in ("validation", "test")}
              for name in SYSTEMS}  # fmt: skip
    for name in SYSTEMS:
        rows = _rows(name, scores[name]["validation"], who)
        label = _labels(cut.validation)
        calibrators[name] = Platt(rows.shape[-1], [1, 0, 0, 0, 0]).fit(rows.flatten(0, 1), label.flatten())
        chance = calibrators[name](_rows(name, scores[name]["test"], who))
        metrics[name], bins[name] = measure(chance, scores[name]["test"], cut.test, who)
        audiences[name] = chance.sum(0).tolist()
    metrics["gain"] = gains(scores, calibrators, who, cut.test)
    lists = {name: rank(_vectors(name, model, who, text["test"]), None, None, cut.test.log, at=(10, 20, 50)).metrics
             for name in ("metric", "content")}  # fmt: skip
    for name, found in lists.items():
        metrics[name] |= {key: value.double().nanmean().item() for key, value in found.items()}
    for key in ("recall@20", "ndcg@20"):
        metrics["gain"][f"{key}_over_content"] = list(compare(lists["metric"][key], lists["content"][key]))
    metrics |= {"curve": curve, "items": {n: len(getattr(cut, n).items) for n in text}, "customers": len(cut.users),
                "purchases": {n: len(getattr(cut, n).log) for n in text},
                "strangers": {n: getattr(cut, n).strangers for n in text}}  # fmt: skip
    _write(Path(out), plan, settings, model, reader, who, calibrators["metric"], cut, audiences, bins, metrics)
    return metrics


def train(plan: Plan, cut: Windows, text: Mapping[str, Tensor]) -> tuple[CML, list[dict]]:
    """CML with descriptions; the weights of the epoch that finds most of the validation window's purchases.

    Distances of one customer are compared, never those of two: who buys often is the probabilities' matter.
    """
    torch.manual_seed(plan.seed)
    chosen = {"item_dropout": 0.5, "width": 64, "hidden": 128} | plan.model
    model = build("recommend.retrieval", "cml", cut.train.log, features=text["train"], seed=plan.seed, **chosen)
    all_casual = replace(plan, casual=cut.train.log.items + 1)
    with torch.no_grad():  # a customer starts among what it bought
        model.user.copy_(customers(model.eval(), cut.train, text["train"], all_casual).point)
    tables = [{"params": [model.user, model.item], "lr": plan.table_rate}, {"params": model.content.parameters()}]
    optimizer = torch.optim.Adam(tables, plan.learning_rate)
    draws, best, curve, step = Available(cut.train), {}, [], 0
    for epoch in range(1, plan.epochs + 1):
        order = torch.randperm(len(draws.usable), generator=torch.Generator().manual_seed(plan.seed + epoch))
        total, model = 0.0, model.train()
        for pair in draws.usable[order].split(plan.batch):
            step += 1
            draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
            negative = draws.draw(pair, model.negatives, draw)
            optimizer.zero_grad()
            loss, _ = model(cut.train.log.user[pair], cut.train.log.item[pair], negative)
            loss.backward()
            optimizer.step()
            model.after_step()
            total += loss.item()
        who = customers(model.eval(), cut.train, text["train"], plan)
        vectors = _vectors("metric", model, who, text["validation"])
        found = rank(vectors, None, None, cut.validation.log, at=(20,)).metrics["recall@20"].nanmean().item()
        curve.append({"epoch": epoch, "loss": total / len(draws.usable), "validation_recall": found})
        top = max(curve, key=lambda row: row["validation_recall"])
        if top["epoch"] == epoch:
            best = {name: value.clone() for name, value in model.state_dict().items()}
        if epoch - top["epoch"] >= plan.patience:
            break
    model.load_state_dict(best)
    return model, curve


@torch.no_grad()
def customers(model: CML, window: Window, text: Tensor, plan: Plan) -> Customers:
    """Customers as their purchases of the window tell them."""
    log, last = window.log, int(window.day.max())
    years = (last - window.day).double() / DAYS
    weight = 0.5 ** (years / plan.half_life)
    total = torch.zeros(log.users, dtype=torch.float64).index_add_(0, log.user, weight)
    placed = model.place(text)[log.item].double() * weight[:, None]
    mean = torch.zeros(log.users, placed.shape[1], dtype=torch.float64).index_add_(0, log.user, placed)
    casual = (log.user_degree < plan.casual)[:, None]
    point = torch.where(casual, (mean / total[:, None]).float(), model.user)
    taste = torch.zeros(log.users, text.shape[1]).index_add_(0, log.user, text[log.item])
    since = torch.full((log.users,), torch.inf, dtype=torch.float64).scatter_reduce_(0, log.user, years, "amin")
    tier = _tiers(log.user_degree)
    terms = [log.user_degree.double().log1p(), since, (tier == 1).double(), (tier == 2).double()]
    taste = torch.nn.functional.normalize(taste, dim=-1)
    released = {"metric": as_product(point, model.place(text)), "content": (taste, text)}
    scores = {name: users @ items.mT for name, (users, items) in released.items()}
    levels = [torch.stack([s.mean(1), s.std(1).clamp(min=1e-6)], 1) for s in scores.values()]
    return Customers(point, taste, torch.stack(terms, 1), tier, *levels)


@torch.no_grad()
def score(system: str, model: CML, who: Customers, text: Tensor) -> Tensor:
    """(U, M) of releases described by text (M, F), larger is likelier: -z, the cosine alike, or purchases alone."""
    if system == "customer":
        return who.terms[:, :1].expand(-1, len(text)).float()
    users, items = _vectors(system, model, who, text)
    mean, deviation = (who.metric_level if system == "metric" else who.content_level).unbind(1)
    return (users @ items.mT - mean[:, None]) / deviation[:, None]


def item_auc(score_UM: Tensor, log: Log) -> Tensor:
    """AUC of each item's buyers against all other customers: (M,) float64; NaN without a buyer or without another."""
    label = torch.zeros(score_UM.shape, dtype=torch.bool)
    label[log.user, log.item] = True
    return torch.stack([auc(score_UM[:, item], label[:, item]) for item in range(label.shape[1])])


def measure(chance_UM: Tensor, score_UM: Tensor, window: Window, who: Customers) -> tuple[dict, dict]:
    """Metrics of a system's probabilities, and the bins of its reliability."""
    label = _labels(window)
    expected, true = chance_UM.sum(0), label.sum(0)
    found = {
        "item_auc": item_auc(score_UM, window.log).nanmean().item(),
        "probability_item_auc": item_auc(chance_UM, window.log).nanmean().item(),
        "ece": calibration_error(chance_UM.flatten(), label.flatten()).item(),
        "audience_ratio": (expected.sum() / true.sum()).item(),
        "audience_error": (expected - true).abs().mean().item(),
        "audience_rank_correlation": _rank_correlation(expected, true),
    }
    for place, tier in enumerate(TIERS):
        mine = who.tier == place
        found[f"audience_ratio_{tier}"] = (chance_UM[mine].sum() / label[mine].sum().clamp(min=1)).item()
    return found, reliability(chance_UM.flatten(), label.flatten())


def gains(scores: Mapping, calibrators: Mapping, who: Customers, window: Window) -> dict:
    """Item AUC of the metric against each other system's, by a bootstrap over the test's items."""
    made = {}
    for other in SYSTEMS[1:]:
        plain = [item_auc(scores[name]["test"], window.log) for name in ("metric", other)]
        chance = [item_auc(calibrators[name](_rows(name, scores[name]["test"], who)), window.log)
                  for name in ("metric", other)]  # fmt: skip
        made[f"item_auc_over_{other}"] = list(compare(*plain))
        made[f"probability_item_auc_over_{other}"] = list(compare(*chance))
    return made


def predict(folder: str | Path, releases: pl.DataFrame, alike: int = 3) -> pl.DataFrame:
    """Expected audience of releases that were in no window.

    Args:
        folder: what `release` wrote.
        releases: item_id and overview, one row each.
        alike: how many released items to name that lie nearest.

    Returns:
        `releases` with audience (customers expected to buy), share (of all customers) and alike (names).
    """
    folder = Path(folder)
    state, system = load_file(folder / "model.safetensors"), read_json(folder / "system.json")
    part = lambda stem: {key.removeprefix(stem): value for key, value in state.items() if key.startswith(stem)}
    reader = describer(system["describe"], system["words"]).load(part("text."))
    text = reader(releases["overview"].to_list(), releases["item_id"].to_list())
    # f alone is needed: any log of one pair builds it, the saved weights fill it.
    model = build("recommend.retrieval", "cml", Log.of(torch.tensor([0]), torch.tensor([0])),
                  features=text[:1], **system["model"])  # fmt: skip
    model.content.load_state_dict(part("content."))
    who = Customers(**part("who."))
    calibrator = Platt(1 + who.terms.shape[1])
    calibrator.load_state_dict(part("chance."))
    chance = calibrator(_rows("metric", score("metric", model.eval(), who, text), who))
    points = model.place(text)
    near = torch.cdist(points, state["points"]).topk(min(alike, len(state["points"])), largest=False).indices
    names = pl.read_parquet(folder / "items.parquet")["name"].to_list()
    return releases.with_columns(audience=pl.Series(chance.sum(0).tolist()), share=pl.Series(chance.mean(0).tolist()),
                                 alike=pl.Series([[names[item] for item in row] for row in near.tolist()]))  # fmt: skip


def _texts(reader: Describer, window: Window) -> Tensor:
    return reader(window.items["overview"].to_list(), window.items["item_id"].to_list())


def _vectors(system: str, model: CML, who: Customers, text: Tensor) -> tuple[Tensor, Tensor]:
    return as_product(who.point, model.place(text)) if system == "metric" else (who.taste, text)


def _labels(window: Window) -> Tensor:
    label = torch.zeros(window.log.users, window.log.items, dtype=torch.float64)
    label[window.log.user, window.log.item] = 1
    return label


def _rows(system: str, score_UM: Tensor, who: Customers) -> Tensor:
    """(U, M, 5): the score and the customer's terms; customers alone have no score, 0."""
    own = torch.zeros_like(score_UM) if system == "customer" else score_UM
    terms = who.terms[:, None].expand(-1, score_UM.shape[1], -1)
    return torch.cat([own[..., None].double(), terms], -1)


def _tiers(degree: Tensor) -> Tensor:
    cuts = degree.double().quantile(torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    return torch.bucketize(degree.double(), cuts, right=True)


def _rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; 0 where one of them is constant."""

    def ranks(x: Tensor) -> Tensor:
        _, place, count = x.unique(return_inverse=True, return_counts=True)
        return (count.cumsum(0) - (count - 1) / 2).double()[place]

    pair = torch.stack([ranks(a), ranks(b)])
    return torch.corrcoef(pair)[0, 1].nan_to_num(0).item() if pair.shape[1] > 1 else 0.0


def _write(out, plan, settings, model, reader, who, calibrator, cut, audiences, bins, metrics) -> None:
    parts = {"content.": model.content.state_dict(), "who.": vars(who), "text.": reader.state(),
             "chance.": calibrator.state_dict()}  # fmt: skip
    tensors = {f"{stem}{key}": value.contiguous() for stem, part in parts.items() for key, value in part.items()}
    text, read = _texts(reader, cut.train), json.loads(json.dumps(dict(settings), default=str))
    built = {"width": model.user.shape[1], "hidden": model.content.first.out_features, "clip": model.clip,
             "margin": model.margin, "feature_scale": model.feature_scale}  # fmt: skip
    with new_folder(out) as folder:
        save_file(tensors | {"points": model.place(text).contiguous()}, folder / "model.safetensors")
        about = {"describe": plan.describe, "words": plan.words, "model": built, "settings": read}
        write_json(folder / "system.json", about)
        cut.train.items.drop("overview").write_parquet(folder / "items.parquet")
        cut.test.items.drop("overview").with_columns(**{k: pl.Series(v) for k, v in audiences.items()}).write_parquet(
            folder / "audience.parquet"
        )
        lines = {
            name: tuple(found[key].numpy() for key in ("predicted", "observed", "rows")) for name, found in bins.items()
        }
        (folder / "reliability.png").write_bytes(plots.reliability(lines))
        write_curve(folder, [{"step": row["epoch"]} | row for row in metrics["curve"]], "validation_recall")
        write_json(folder / "metrics.json", {key: value for key, value in metrics.items() if key != "curve"})


def main(address: str, name: str, events: str, out: str) -> None:
    """python -m tasks.release params.yaml:recommenders.releases NAME artifacts/ingest/movies OUT"""
    use_threads()
    settings = {key: value for key, value in read(f"{address}.{name}").items() if key != "data"}
    log = pl.read_parquet(Path(events) / "events" / "**" / "*.parquet")
    if absent := [column for column in COLUMNS if column not in log.columns]:
        raise SettingsError(f"{events} has no column {', '.join(absent)}: releases need items with a description and a "
                            f"day of release, as tasks/datasets/movies.py reads them")  # fmt: skip
    found = release(settings, log, out)
    low, high = found["gain"]["item_auc_over_content"][1:]
    print(f"{name}: item AUC {found['metric']['item_auc']:.4f} (content alone {found['content']['item_auc']:.4f}, "
          f"difference {low:+.4f} to {high:+.4f}), ECE {found['metric']['ece']:.5f}, audience "
          f"{found['metric']['audience_ratio']:.2f} of the true one; {found['items']['test']} releases")  # fmt: skip


if __name__ == "__main__":
    run(main)
