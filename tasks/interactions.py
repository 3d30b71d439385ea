"""A log of users and items -> unique pairs for training, validation and test, ids numbered from 0; or nothing.

    given    the log's own split; validation is cut from the training pairs where the log has none and `val` asks for it
    random   each user's pairs, shuffled, are cut 8:1:1
    last     each user's pairs, in time order, are cut 8:1:1: the last ones are the test
    time     all pairs, in time order, are cut 8:1:1: what is tested is later than all that is trained on

Cut by user, val and test have floor(0.1 n) of n pairs each, but one where that is 0 and a training pair is left: of 2
pairs one is the test, a single one is trained on (RecBole's rule for ratios, RO_RS and TO_RS). Of a pair logged several
times the earliest counts. With a given split, a pair stays in the first of its splits: what was trained on is never
recommended, so it could not be found.
"""

from pathlib import Path

import polars as pl

from tasks.command import run
from tasks.fetch import dataset
from tasks.files import digest, new_folder, read_json, write_json
from tasks.settings import SettingsError, check_names, read

__all__ = ["NoPairs", "interactions", "load"]

KIND = "interactions"  # of the data sets that this unit ingests
SPLITS = ("train", "val", "test")
HOW = ("given", "random", "last", "time")
RATIO = 0.1  # of val, and of test


class NoPairs(ValueError):
    """The log cannot be split into pairs to train on and pairs to test."""


def interactions(
    rows: pl.LazyFrame, out: str | Path, how: str | None = None, seed: int = 0, val: float = 0.0, least: int = 1
) -> dict:
    """Write a log's pairs to the folder `out`, whole or not at all.

    Args:
        rows: user_id, item_id, time, split: what tasks/datasets/interactions.py reads.
        out: takes rows/train.parquet, rows/val.parquet and rows/test.parquet (user, item: Int64 from 0, sorted;
            user_id, item_id, and time where it is known), users.parquet (user, user_id) and items.parquet (item,
            item_id) in the order of ids, and manifest.json.
        how: given, random, last or time, see above; None: given where the log has a split, else random.
        seed: of what is drawn.
        val: share of each user's training pairs that becomes validation, where a given split has none; 0 for none.
        least: users and items with fewer pairs are left out, again and again until none is left.

    Returns:
        The manifest: users, items, pairs by split, what was removed, users and items that are in no training pair.

    Raises:
        NoPairs: no pair, no test pair, no training pair, or no times where `how` needs them.
        SettingsError: a setting outside its range.
    """
    if how not in (None, *HOW):
        raise SettingsError(f"how is {how!r}; it is one of {', '.join(HOW)}")
    if not 0 <= val < 1 or least < 1:
        raise SettingsError(f"val must be in [0, 1) and least at least 1; got {val}, {least}")
    logged = rows.select("user_id", "item_id", "time", "split").collect()
    if not logged.height:
        raise NoPairs("the log has no row; nothing was written")
    how = how or ("given" if logged["split"].null_count() < logged.height else "random")
    unique = _unique(logged, how)
    pairs = _core(unique, least)
    pairs = _given(pairs, val, seed) if how == "given" else _cut(pairs, how, seed)
    sizes = {split: pairs.filter(pl.col("split") == split).height for split in SPLITS}
    if not sizes["train"] or not sizes["test"]:
        raise NoPairs(
            f"train and test need pairs, but of {logged.height} rows there are {sizes}; change `how`, `least`"
        )
    users, items = _numbered(pairs, "user"), _numbered(pairs, "item")
    pairs = pairs.join(users, on="user_id").join(items, on="item_id").sort("user", "item")
    trained = pairs.filter(pl.col("split") == "train")
    manifest = {
        "kind": "interactions",
        "users": users.height,
        "items": items.height,
        "pairs": sizes,
        "rows_in": logged.height,
        "repeats_removed": logged.height - unique.height,
        "rare_removed": unique.height - pairs.height,
        "users_without_training": users.height - trained["user"].n_unique(),
        "items_without_training": items.height - trained["item"].n_unique(),
        "settings": {"how": how, "seed": seed, "val": val, "least": least},
    }
    with new_folder(out) as folder:
        (folder / "rows").mkdir()
        timed = pairs["time"].null_count() < pairs.height
        columns = ["user", "item", "user_id", "item_id", *(["time"] if timed else [])]
        for split in SPLITS:
            pairs.filter(pl.col("split") == split).select(columns).write_parquet(folder / "rows" / f"{split}.parquet")
        users.write_parquet(folder / "users.parquet")
        items.write_parquet(folder / "items.parquet")
        manifest["digest"] = digest(folder)
        write_json(folder / "manifest.json", manifest)
    return manifest


def load(folder: str | Path) -> dict:
    """The logs of a folder that `interactions` wrote: {"train": Log, "val": Log or None, "test": Log}, equal counts."""
    from models.recommend.retrieval._log import Log

    folder = Path(folder)
    manifest = read_json(folder / "manifest.json")
    found = {}
    for split in SPLITS:
        pairs = pl.read_parquet(folder / "rows" / f"{split}.parquet", columns=["user", "item"])
        ids = (pairs[name].to_torch() for name in ("user", "item"))
        found[split] = Log.of(*ids, manifest["users"], manifest["items"]) if pairs.height else None
    return found


def _unique(logged: pl.DataFrame, how: str) -> pl.DataFrame:
    """One row a pair, in the order of ids: its first time, and with a given split its first one."""
    if how == "given":
        if unsplit := logged["split"].null_count():
            raise NoPairs(f"{unsplit} of {logged.height} rows have no split; name it for all files, or set `how`")
        logged = logged.with_columns(pl.col("split").cast(pl.Enum(SPLITS)))
    elif how != "random" and (timeless := logged["time"].null_count()):
        raise NoPairs(f"{timeless} of {logged.height} rows have no time, which how={how} needs; set how: random")
    first = logged.group_by("user_id", "item_id").agg(pl.col("time").min(), pl.col("split").min())
    return first.sort("user_id", "item_id")


def _core(pairs: pl.DataFrame, least: int) -> pl.DataFrame:
    """Pairs of users and items with at least so many among these pairs."""
    while least > 1:
        often = pl.len().over("user_id").ge(least) & pl.len().over("item_id").ge(least)
        kept = pairs.filter(often)
        if kept.height == pairs.height:
            break
        pairs = kept
    return pairs


def _given(pairs: pl.DataFrame, val: float, seed: int) -> pl.DataFrame:
    if not val or (pairs["split"] == "val").any():
        return pairs
    train = _placed(pairs.filter(pl.col("split") == "train"), _drawn(seed))
    # floor(val n), and never all of a user's pairs: n - floor(val n) is at least 1.
    held = pl.col("place") >= pl.col("n") - (pl.col("n") * val).floor().cast(pl.Int64)
    cut = train.with_columns(split=pl.when(held).then(pl.lit("val")).otherwise(pl.lit("train")).cast(pl.Enum(SPLITS)))
    return pl.concat([cut.select(pairs.columns), pairs.filter(pl.col("split") != "train")])


def _cut(pairs: pl.DataFrame, how: str, seed: int) -> pl.DataFrame:
    if how == "time":
        ordered = pairs["time"].sort()
        held = max(1, int(RATIO * pairs.height))
        val, test = (ordered[max(0, pairs.height - count * held)] for count in (2, 1))
        # Pairs of one moment stay together, in the later split.
        split = pl.when(pl.col("time") < val).then(pl.lit("train")).when(pl.col("time") < test).then(pl.lit("val"))
        return pairs.with_columns(split=split.otherwise(pl.lit("test")).cast(pl.Enum(SPLITS)))
    placed = _placed(pairs, _drawn(seed) if how == "random" else pl.col("time"))
    n, held = pl.col("n"), (pl.col("n") * RATIO).floor().cast(pl.Int64)
    test = pl.when((held == 0) & (n > 1)).then(1).otherwise(held)
    val = pl.when((held == 0) & (n > 2)).then(1).otherwise(held)
    split = pl.when(pl.col("place") < n - val - test).then(pl.lit("train"))
    split = split.when(pl.col("place") < n - test).then(pl.lit("val")).otherwise(pl.lit("test"))
    return placed.with_columns(split=split.cast(pl.Enum(SPLITS))).select(pairs.columns)


def _drawn(seed: int) -> pl.Expr:
    """A random number for each row, in the order of the rows."""
    return pl.int_range(pl.len()).shuffle(seed)


def _placed(pairs: pl.DataFrame, order: pl.Expr) -> pl.DataFrame:
    """Adds place, from 0 among the user's pairs in this order, of equal ones the smaller item first; n, how many."""
    place = pl.int_range(pl.len()).over("user_id")
    ordered = pairs.with_columns(order.alias("order")).sort("user_id", "order", "item_id")
    return ordered.with_columns(place=place, n=pl.len().over("user_id").cast(pl.Int64)).drop("order")


def _numbered(pairs: pl.DataFrame, name: str) -> pl.DataFrame:
    ids = pairs.select(pl.col(f"{name}_id").unique().sort())
    return ids.select(pl.int_range(pl.len(), dtype=pl.Int64).alias(name), f"{name}_id")


def main(address: str, raw: str, out: str) -> None:
    """python -m tasks.interactions params.yaml:datasets.interactions data/interactions artifacts/ingest/interactions"""
    settings = read(address).get("split", {})
    check_names(settings, ("how", "seed", "val", "least"), f"{address}.split")
    found = interactions(dataset(address.rpartition(".")[2]).read(Path(raw)), out, **settings)
    sizes = ", ".join(f"{split} {pairs}" for split, pairs in found["pairs"].items())
    print(f"{out}: {found['users']} users, {found['items']} items, {sum(found['pairs'].values())} pairs ({sizes})")


if __name__ == "__main__":
    run(main)
