"""MerRec: a consumer-to-consumer marketplace's click stream (CC BY-NC 4.0, not shipped), from local shards or the hub.

Published with arXiv:2402.14230; six month folders, `20230501` to `20231001`, of Parquet shards that hold whole users.
Reference shares and null rates below are those of the complete month of May 2023 (174,872,167 rows).
"""

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from tasks.datasets._rules import (
    Rule,
    at_least_rows,
    at_most_per_user,
    between,
    distinct_key,
    finite,
    implies,
    in_set,
    inside_month,
    not_null,
    null_rate,
    one_name_per_id,
    present,
    share,
    whole_sequences,
)
from tasks.datasets._schema import COLUMNS, IDS, MERREC_EVENTS, REQUIRED, conform
from tasks.progress import counted

__all__ = ["EVENTS", "FEATURES", "ShardError", "expectations", "fetch", "read", "rules", "scan"]

EVENTS = MERREC_EVENTS
EVENT_SHARES = {
    "item_view": 0.84551,
    "item_like": 0.12736,
    "item_add_to_cart_tap": 0.01656,
    "offer_make": 0.00700,
    "buy_start": 0.00247,
    "buy_comp": 0.00109,
}
NULL_RATES = {"brand_id": 0.1920, "size_id": 0.6274, "color": 0.9561}
MONTHS = ("2023-05", "2023-06", "2023-07", "2023-08", "2023-09", "2023-10")
HUB = "mercari-us/merrec"
NAMED = ("c0", "c1", "c2", "brand", "item_condition", "size", "shipper")
KEY = ("user_id", "item_id", "event_id", "stime", "session_id", "sequence_id")

FEATURES = {
    "categorical": [
        "user_id",
        "c0_id",
        "c1_id",
        "c2_id",
        "brand_id",
        "item_condition_id",
        "size_id",
        "color",
        "shipper_id",
        "hour",
        "weekday",
    ],
    "numerical": [
        "price",
        "session_position",
        "seconds_since_previous",
        "user_events_before",
        "user_item_like_before",
        "user_item_add_to_cart_tap_before",
        "user_offer_make_before",
        "user_buy_start_before",
        "item_events_before",
        "seen_before",
        "same_c0_id_before",
        "same_c2_id_before",
        "same_brand_id_before",
        "price_ratio",
    ],
    "history": {"c2_id": 3, "brand_id": 2},
}


class ShardError(ValueError):
    """A shard is missing, cut short or not Parquet."""


class HubError(ConnectionError):
    """The hub did not give the shards."""


def read(raw: Path) -> pl.LazyFrame:
    """All shards below `raw` as one log in the event schema.

    Raises:
        ShardError: there is none.
        SchemaError: the shards have other columns than MerRec's.
    """
    return conform(_plain_ids(scan(Path(raw))))


def expectations() -> list[Rule]:
    """The published statistics of one month, loosely enough for one shard of 7,571 users."""
    return [*rules(relative=0.15), inside_month("stime", *MONTHS)]


def rules(relative: float) -> list[Rule]:
    """What holds for every log of MerRec's kind, whatever its month.

    Args:
        relative: how far the share of an event may be from the published one, as a fraction of it; four times as far
            for the two events below 0.5 % of the rows.
    """
    return [
        at_least_rows(1),
        present(*COLUMNS),
        *(not_null(column) for column in REQUIRED),
        in_set("event_id", EVENTS),
        finite("price"),
        between("price", 1, 5000),
        implies("c1_id", "c0_id"),
        implies("c2_id", "c1_id"),
        *(one_name_per_id(f"{name}_id", f"{name}_name") for name in NAMED),
        *(null_rate(column, rate, tolerance=0.02) for column, rate in NULL_RATES.items()),
        *(
            share("event_id", event, expected, relative if expected > 0.005 else 4 * relative)
            for event, expected in EVENT_SHARES.items()
        ),
        distinct_key(KEY),
        whole_sequences(),
        at_most_per_user(30_000),
    ]


def fetch(
    out: Path,
    source: Path,
    revision: str | None = None,
    months: list[str] | None = None,
    shards: int | None = None,
) -> None:
    """Bring shards into the empty folder `out`, each checked to be whole.

    Args:
        out: the folder to fill; month folders of the source are kept.
        source: a shard, a folder of shards or of month folders, or the word `hub` for the Hugging Face hub. Downloads
            are staged beside `out` and survive a kill: the next call goes on with the first unfinished shard.
        revision: of the hub's data set: the full commit hash, so that the same settings always mean the same bytes.
        months: month folders such as "20230501"; None means all that a local folder has.
        shards: only the first so many of each month (of each folder); None means all.

    Raises:
        ShardError: no shard fits, or some are broken; names every broken file.
        HubError: the hub cannot be reached or does not have them.
    """
    months = _months(months)
    if isinstance(shards, bool) or not (shards is None or isinstance(shards, int) and shards > 0):
        raise ShardError(f"shards must be a number of files from 1 on, or null for all; got {shards!r}")
    if str(source) == "hub":
        folder, drop = _download(Path(out), revision, months, shards), True
    else:
        folder, drop = Path(source), False
    chosen = _chosen(folder, months, shards)
    _check(chosen, drop)
    for path in counted(chosen, "fetch", "shard"):
        target = Path(out) / (path.name if path == folder else path.relative_to(folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        if not drop or not _linked(path, target):
            shutil.copyfile(path, target)


def scan(raw: Path, pattern: str = "**/*.parquet") -> pl.LazyFrame:
    """The Parquet files below a folder as one lazy frame, in the order of their names.

    Raises:
        ShardError: there is none.
    """
    files = sorted(path for path in Path(raw).glob(pattern) if path.name[0] != ".")
    if not files:
        raise ShardError(f"{raw} has no file that matches {pattern}; fetch the data set first (`dvc repro`)")
    return pl.scan_parquet(files, hive_partitioning=False)


def _plain_ids(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Integers where a tool between the hub and here made floats of nullable ids, strings where it made integers."""
    found = frame.collect_schema()
    integers = [name for name in (*IDS, "sequence_length") if name in found and found[name].is_float()]
    strings = [
        name for name in ("session_id", "sequence_id", "product_id") if name in found and found[name].is_integer()
    ]
    return frame.with_columns(pl.col(integers).cast(pl.Int64), pl.col(strings).cast(pl.String))


def _months(months: Iterable[str] | None) -> list[str] | None:
    if months is None:
        return None
    names = [str(month) for month in ([months] if isinstance(months, (str, int)) else months)]
    known = [month.replace("-", "") + "01" for month in MONTHS]
    if not names or not set(names) <= set(known):
        raise ShardError(f"months must be some of {', '.join(known)}; got {months!r}")
    return names


def _chosen(folder: Path, months: list[str] | None, shards: int | None) -> list[Path]:
    """The shards to take, in the order of their names; at most `shards` of each folder."""
    if not folder.exists():
        raise ShardError(
            f"source {folder} does not exist; give a folder of MerRec's Parquet shards, or `hub` to download them"
        )
    if folder.is_file():
        return [folder]
    found = sorted(
        p for p in folder.rglob("*.parquet") if not any(part[0] == "." for part in p.relative_to(folder).parts)
    )
    if months is not None:
        found = [path for path in found if path.parent.name in months]
        absent = [month for month in months if month not in {path.parent.name for path in found}]
        if absent:
            raise ShardError(
                f"{folder} has no shards of the months {', '.join(absent)}; it needs folders of these names"
            )
    if not found:
        raise ShardError(f"{folder} has no Parquet shard; MerRec's are named like 20230501/000000000000.parquet")
    folders = dict.fromkeys(path.parent for path in found)
    return [path for parent in folders for path in [p for p in found if p.parent == parent][:shards]]


def _check(paths: list[Path], drop: bool) -> None:
    """Refuse broken shards, all at once; `drop` removes them, so that the next download brings them again."""
    broken = {path: fault for path in paths if (fault := _fault(path))}
    if not broken:
        return
    if drop:
        for path in broken:
            path.unlink()
    advice = "They were removed from the staging folder: run this again" if drop else "Get them again from their source"
    lines = "".join(f"\n  {path}: {fault}" for path, fault in broken.items())
    raise ShardError(f"{len(broken)} of {len(paths)} shards are broken:{lines}\n{advice}.")


def _fault(path: Path) -> str | None:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(4)
        file.seek(max(0, size - 4))
        end = file.read(4)
    if start != b"PAR1":
        return f"is not Parquet ({size:,} bytes)"
    if end != b"PAR1" or size < 12:
        return f"is cut short ({size:,} bytes, without the end of a Parquet file)"
    try:
        rows = pl.scan_parquet(path).select(pl.len()).collect().item()
    except (pl.exceptions.PolarsError, OSError) as error:
        return f"has an unreadable footer ({error})"
    return None if rows else "has no rows"


def _download(out: Path, revision: str | None, months: list[str] | None, shards: int | None) -> Path:
    """The staging folder beside `out`, with the wanted shards of one revision complete."""
    from huggingface_hub import snapshot_download

    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise ShardError(
            f"source hub needs `revision`: the full commit hash (40 hex digits) of {HUB}, which its page on the hub "
            f"shows under Files, History; got {revision!r}. A branch name would mean other bytes tomorrow"
        )
    if months is None:
        raise ShardError(
            "source hub needs `months`, for example [20230501]: a month is about 21 GB; `shards: 1` takes 68 MB"
        )
    staging = out.parent / f".staging-merrec-{revision[:12]}"
    wanted = (
        [f"{m}/{n:012d}.parquet" for m in months for n in range(shards)]
        if shards
        else [f"{m}/*.parquet" for m in months]
    )
    try:
        snapshot_download(HUB, repo_type="dataset", revision=revision, allow_patterns=wanted, local_dir=staging)
    except OSError as error:  # what the hub's client raises offline, for unknown revisions and for broken transfers
        done = len(list(staging.rglob("*.parquet")))
        raise HubError(
            f"could not download {HUB} at {revision}: {type(error).__name__}: {error}\n"
            f"{done} finished shard(s) are kept in {staging}. Run this again where the hub can be reached, or download "
            "the month folders elsewhere and give their folder as `source`"
        ) from error
    absent = [name for name in wanted if not any(staging.glob(name))]
    if absent:
        raise HubError(f"{HUB} at {revision} has no {', '.join(absent[:5])}; a month has 300 shards and more")
    return staging


def _linked(path: Path, target: Path) -> bool:
    """Whether a second name could be given to the staged file: 21 GB a month need not be there twice."""
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without links
        return False
    return True
