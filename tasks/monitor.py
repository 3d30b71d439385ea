"""Compare new rows of a log with the period that was trained on, and the champions' answers to both, with thresholds.

    artifacts/monitor/<dataset>.json    what a report and the flow `watch` read; .csv, .png: the same to look at

The reference is one split of the ingested log, the new rows are another: `train` and `test`, the newest days. Of a log
that a model reads, its features are compared, else the log's own columns. No stage of the graph: it compares with
whoever is the champion, which DVC cannot see, nothing reads what it writes, and a new task must not run it.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import polars as pl

from tasks import plots
from tasks.command import run
from tasks.files import read_if_there, read_json, write_json, write_text
from tasks.settings import SettingsError, fill, read
from tasks.shift import Counts, bins, grid_of, ks, psi

__all__ = ["CannotCompare", "Settings", "alarms", "due", "monitor", "settings_for"]

SPLITS = ("train", "val", "test")
RETRAIN = ("always", "over_threshold")
OTHER = ("user", "item", "session", "split", "stime", "sequence_length", "row", "sampled")  # no features
IDS = ("user_id", "item_id", "product_id", "session_id", "sequence_id")  # of a log of any size
BATCH = 250_000  # rows in memory at a time
SAMPLE = 100_000  # rows of the reference that the grid of a number is read from
COLUMNS = ("feature", "kind", "psi", "ks", "missing", "missing_reference", "unseen", "over")


class CannotCompare(ValueError):
    """One side has no rows, or a feature that is asked for is gone."""


@dataclass(frozen=True)
class Settings:
    """The section `monitor` of params.yaml; `{}` means these.

    Attributes:
        psi: of a feature or a prediction; 0.2 is the usual rule of thumb for a large shift.
        ks: distance of two cumulative distributions (ours).
        auc_drop: by which the AUC may lie below that at promotion; the whole 95 % interval must lie lower (ours).
        missing: rise of a feature's share of missing values (ours).
        unseen: share of rows whose value the reference does not have; null only reports it: new items are normal.
        bins: of a number, about equally full in the reference; ten is the convention.
        categories: most frequent ones that are told apart, and with more than 20 times as many a column counts as ids,
            of which only missing and unseen values are compared (ours).
        rows: at most, of each side, that a champion is asked about (ours).
        ignore: features that are reported and never over.
        computed: whether those that tasks/context.py computes can be over: counts grow with the log, and three days do
            not have all weekdays (ours).
        reference, new: splits of the log.
        answered: split on which a champion's predictions are the reference: days that it was not trained on, as its
            predictions on those that it was are sharper without any drift (ours).
        retrain: "always", or "over_threshold": new data alone start no training while nothing is over.
    """

    psi: float = 0.2
    ks: float = 0.1
    auc_drop: float = 0.02
    missing: float = 0.05
    unseen: float | None = None
    bins: int = 10
    categories: int = 50
    rows: int = 20_000
    ignore: Sequence[str] = ()
    computed: bool = False
    reference: str = "train"
    new: str = "test"
    answered: str = "val"
    retrain: str = "always"


def settings_for(chosen: Mapping | None) -> Settings:
    """The settings, checked.

    Raises:
        SettingsError: names every fault.
    """
    made, faults = fill(Settings, chosen or {}, "monitor"), []
    told = vars(made)
    number = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)
    for name in ("psi", "ks", "auc_drop", "missing", "unseen"):
        if not (number(told[name]) and told[name] >= 0 or name == "unseen" and told[name] is None):
            faults.append(f"{name} is {told[name]!r}; it must be a number, 0 or more")
    for name, least in (("bins", 2), ("categories", 1), ("rows", 1)):
        if type(told[name]) is not int or told[name] < least:
            faults.append(f"{name} is {told[name]!r}; it must be a whole number, {least} or more")
    if not isinstance(told["ignore"], (list, tuple)):
        faults.append(f"ignore is {told['ignore']!r}; write a list of features")
    if not isinstance(told["computed"], bool):
        faults.append(f"computed is {told['computed']!r}; it must be true or false")
    for name in ("reference", "answered"):
        if {told[name], told["new"]} - {*SPLITS} or told[name] == told["new"]:
            faults.append(f"{name} and new are two of {', '.join(SPLITS)}, got {told[name]} and {told['new']}")
    if told["retrain"] not in RETRAIN:
        faults.append(f"retrain is {told['retrain']!r}; it is one of {', '.join(RETRAIN)}")
    if faults:
        raise SettingsError(f"monitor: {'; '.join(faults)}")
    return made


def due(chosen: Mapping | None, ingest: Path, out: Path) -> bool:
    """Whether these events have not been compared yet under these settings; texts, which have no time, never are.

    Raises:
        SettingsError: as `monitor`.
    """
    manifest, seen, now = read_if_there(ingest / "manifest.json"), read_if_there(out), _written(settings_for(chosen))
    return "splits" in manifest and (seen.get("data"), seen.get("thresholds")) != (manifest.get("digest"), now)


def _written(settings: Settings) -> dict:
    return asdict(settings) | {"ignore": list(settings.ignore)}


def monitor(
    chosen: Mapping | None, name: str, ingest: Path, out: Path, features: Path | None = None,
    models: Iterable[str] = (),
) -> dict:  # fmt: skip
    """Write `out` (JSON), and a table and a picture of the same name beside it.

    Args:
        chosen: the section `monitor` of params.yaml, see `Settings`.
        name: the dataset.
        ingest: folder of its ingested events.
        features: folder of tasks/features.py whose rows a model reads; sampled rows are left out.
        models: registered models of which the champions, where there are any, answer rows of `features`.

    Returns:
        {"dataset", "data", "reference", "new", "features", "predictions", "thresholds", "over": [names]}.

    Raises:
        SettingsError: a setting cannot be applied.
        CannotCompare: no rows on one side, or a feature is gone.
        RegistryUnreachable: whether there is a champion cannot be known.
    """
    settings, manifest = settings_for(chosen), read_json(ingest / "manifest.json")
    if "splits" not in manifest:
        raise CannotCompare(f"{ingest} holds texts, which have no time: there are no new rows to compare with old ones")
    sides, columns = _sides(settings, name, ingest, features)
    quiet = {*settings.ignore}
    if features and not settings.computed:
        quiet |= {*read_json(features / "manifest.json").get("added", {})}
    found = {column: _compared(settings, column, kind, sides, column in quiet) for column, kind in columns.items()}
    answered = {}
    for model in models:
        from tasks.monitor_predictions import compare  # torch and MLflow: seconds that features alone do not need

        answered |= compare(settings, model, ingest, features)
    done = {
        "dataset": name,
        "data": manifest.get("digest"),
        "reference": _period(sides[0]),
        "new": _period(sides[1]),
        "features": found,
        "predictions": answered,
        "thresholds": _written(settings),
    }
    done["over"] = [column for part in (found, answered) for column, facts in part.items() if facts["over"]]
    write_text(out.with_suffix(".csv"), _table(found))
    shown = {column: (0.0, facts["psi"], facts["psi"]) for column, facts in found.items() if facts["psi"] is not None}
    out.with_suffix(".png").write_bytes(plots.intervals(shown, settings.psi, "population stability index", "threshold"))
    write_json(out, done)  # last: whoever sees it sees the others
    return done


def alarms(done: Mapping) -> list[str]:
    """A line for each feature and each model that is over a threshold."""
    limits, lines = done["thresholds"], []
    for column, facts in done["features"].items():
        if facts["over"]:
            told = [f"{key} {facts[key]:.3g} (at most {limits[key]:g})" for key in ("psi", "ks", "unseen")
                    if _above(facts[key], limits[key])]  # fmt: skip
            if _above(facts["missing"] - facts["missing_reference"], limits["missing"]):
                told.append(f"{facts['missing']:.1%} missing, {facts['missing_reference']:.1%} before")
            lines.append(f"{column}: {', '.join(told)}")
    for model, facts in done["predictions"].items():
        if facts["over"]:
            told = [f"{key} {facts[key]:.3g} (at most {limits[key]:g})" for key in ("psi", "ks")
                    if _above(facts[key], limits[key])]  # fmt: skip
            if facts["auc"] is not None and facts["auc_reference"] is not None:
                told.append(f"AUC {facts['auc']:.4f}, {facts['auc_low']:.4f} to {facts['auc_high']:.4f}, at promotion "
                            f"{facts['auc_reference']:.4f}")  # fmt: skip
            lines.append(f"{model}: {facts['fault'] or ', '.join(told)}")
    return lines


def _sides(
    settings: Settings, name: str, ingest: Path, features: Path | None
) -> tuple[list[pl.LazyFrame], dict[str, str]]:
    """The rows of both sides, as scans, and what is compared: column -> "numeric" or "categorical"."""
    splits = settings.reference, settings.new
    if features:
        about = read_json(features / "manifest.json")
        sides = [pl.scan_parquet(features / f"rows/{split}.parquet").filter(pl.col("sampled").is_null())
                 for split in splits]  # fmt: skip
        columns = dict.fromkeys(["event_id", *about["categorical"]], "categorical")
        columns |= dict.fromkeys(about["numerical"], "numeric")
    else:
        log = pl.scan_parquet(ingest / "events/**/*.parquet", hive_partitioning=False)
        sides = [log.filter(pl.col("split") == split) for split in splits]
        columns = {column: _kind(column, dtype) for column, dtype in log.collect_schema().items()
                   if column not in OTHER and not dtype.is_temporal()}  # fmt: skip
    for split, side in zip(splits, sides, strict=True):
        if gone := [column for column in columns if column not in side.collect_schema()]:
            raise CannotCompare(f"{name}: the rows of {split} lack {', '.join(gone)}, which the model reads; run "
                                f"`dvc repro features`")  # fmt: skip
        if not side.select(pl.len()).collect(engine="streaming").item():
            raise CannotCompare(f"{name}: {split} has no rows; widen datasets.{name}.split, or bring a longer log")
    return sides, columns


def _kind(column: str, dtype: pl.DataType) -> str:
    return "numeric" if dtype.is_numeric() and not column.endswith("_id") else "categorical"


def _period(side: pl.LazyFrame) -> dict:
    time = pl.col("stime")
    found = side.select(time.min().alias("from"), time.max().alias("to"), pl.len().alias("rows"))
    first, last, rows = found.collect(engine="streaming").row(0)
    return {"from": first.isoformat(), "to": last.isoformat(), "rows": rows}


def _compared(settings: Settings, column: str, kind: str, sides: Sequence[pl.LazyFrame], quiet: bool) -> dict:
    facts = _numbers(settings, column, sides) if kind == "numeric" else _categories(settings, column, sides)
    over = _above(facts["psi"], settings.psi) or _above(facts["ks"], settings.ks)
    over |= _above(facts["missing"] - facts["missing_reference"], settings.missing)
    over |= _above(facts["unseen"], settings.unseen)
    return facts | {"over": over and not quiet}


def _above(value: float | None, bound: float | None) -> bool:
    return value is not None and bound is not None and value > bound


def _numbers(settings: Settings, column: str, sides: Sequence[pl.LazyFrame]) -> dict:
    rows = sides[0].select(pl.len()).collect(engine="streaming").item()
    step = -(-rows // SAMPLE)
    sample, start = [], 0
    for values in _batches(column, sides[0]):
        sample.append(values[-start % step :: step])  # every step-th row of the whole
        start += len(values)
    grid = grid_of(np.concatenate(sample))
    counts = []
    for side in sides:
        counts.append(Counts(grid))
        for values in _batches(column, side):
            counts[-1].add(values)
    reference, new = counts
    distance = ks(reference, new)
    outside = new.cells[0] + new.cells[-1]  # below the least, above the greatest
    return {
        "kind": "numeric",
        "psi": psi(*bins(reference, new, settings.bins)),
        "ks": None if np.isnan(distance) else distance,
        "missing": new.missing / new.rows,
        "missing_reference": reference.missing / reference.rows,
        "unseen": int(outside) / new.rows,
    }


def _batches(column: str, side: pl.LazyFrame) -> Iterator[np.ndarray]:
    """A column as float64, NaN for null, in the order of the rows."""
    chosen = side.select(pl.col(column).cast(pl.Float64).fill_null(float("nan")))
    for batch in chosen.collect_batches(chunk_size=BATCH, maintain_order=True, engine="streaming"):
        yield batch.to_series().to_numpy()


def _categories(settings: Settings, column: str, sides: Sequence[pl.LazyFrame]) -> dict:
    value = pl.col(column).cast(pl.String).hash(seed=0)  # eight bytes, however long the text
    counted = [
        side.group_by(pl.when(pl.col(column).is_not_null()).then(value).alias("value"))
        .agg(pl.len().cast(pl.Int64).alias("rows"))
        .collect(engine="streaming")
        for side in sides
    ]
    missing, known = zip(*((part.filter(pl.col("value").is_null())["rows"].sum(), part.drop_nulls("value"))
                           for part in counted), strict=True)  # fmt: skip
    rows = [part["rows"].sum() for part in counted]
    ranked = known[0].sort(["rows", "value"], descending=[True, False])
    unseen = known[1].join(ranked, on="value", how="anti")["rows"].sum()
    ids = column in IDS or len(ranked) > 20 * settings.categories
    facts = {
        "kind": "ids" if ids else "categorical",
        "psi": None,
        "ks": None,
        "missing": missing[1] / rows[1],
        "missing_reference": missing[0] / rows[0],
        "unseen": unseen / rows[1],
    }
    if ids:
        return facts
    named = ranked.head(settings.categories)
    shares = []
    for part, lost in zip(known, missing, strict=True):
        joined = named.select("value").join(part, on="value", how="left", maintain_order="left")
        shares.append(dict(zip(map(str, named["value"]), joined["rows"].fill_null(0), strict=True)))
        fresh = 0 if part is known[0] else unseen
        rest = part["rows"].sum() - sum(shares[-1].values()) - fresh
        shares[-1] |= {"other": rest, "unseen": fresh, "missing": lost}
    return facts | {"psi": psi(*shares)}


def _table(found: Mapping[str, Mapping]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"feature": column} | facts for column, facts in found.items())
    return text.getvalue()


def main(address: str, name: str, ingest: str, out: str, features: str | None = None, *models: str) -> None:
    """python -m tasks.monitor params.yaml:monitor DATASET INGEST OUT.json [FEATURES MODEL ...]"""
    done = monitor(read(address), name, Path(ingest), Path(out), Path(features) if features else None, models)
    new, reference, seen = done["new"], done["reference"], len(done["features"]) + len(done["predictions"])
    print(f"{name}: {new['rows']:,} rows from {new['from']} compared with {reference['rows']:,} until "
          f"{reference['to']}; {len(done['over'])} of {seen} over; see {out}")  # fmt: skip
    for line in alarms(done):
        print(f"  {line}")


if __name__ == "__main__":
    run(main)
