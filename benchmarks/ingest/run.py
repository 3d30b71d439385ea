"""Ingestion against pandas and DuckDB: the same steps on the same rows, side by side, in turn, each in its own process.

    python benchmarks/ingest/run.py FOLDER [--rows 20000000] [--repeats 3] [--names ours duckdb pandas] [--titles]

FOLDER takes the synthetic rows (kept for the next run) and the outputs (deleted). Every program reads all columns,
removes duplicates, numbers users and items in the order of ids and sessions by (user, session_id), splits by time, and
writes Parquet with zstd, sorted by user, time, item and event. The outputs are compared: rows, numbers, order, splits.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = ("ours", "duckdb", "pandas")
EVENTS = ("item_view", "item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp")
SHARES = (0.84551, 0.12736, 0.01656, 0.0070, 0.00247, 0.0011)  # MerRec, May 2023
KEY = ("user_id", "item_id", "event_id", "stime", "session_id")
MAY = 1_682_899_200_000_000  # 2023-05-01 UTC, in microseconds
DAYS, DAY = 30, 86_400_000_000
VAL, TEST = "2023-05-25 00:00:00+00", "2023-05-28 00:00:00+00"  # three days each
SHARD = 1_000_000


# Rows


def make(folder: Path, rows: int, titles: bool) -> None:
    """Write shards in time order, rows inside a shard in any order; sizes and skew as in MerRec's May 2023."""
    shards = max(1, rows // SHARD)
    fresh = folder.with_name(f".{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for index in range(shards):
        part = shard(index, rows // shards, DAYS * DAY // shards, users=int(rows / 63.2), items=int(rows / 5.82))
        part = part if titles else part.drop("name")
        part.write_parquet(fresh / f"{index:012d}.parquet")
    fresh.rename(folder)


def shard(index: int, rows: int, span: int, users: int, items: int):
    """Log-normal session lengths, user and item weights; a quarter of the rows repeat an item, 0.084 % stand twice."""
    import numpy as np
    import polars as pl
    from scipy.special import ndtr  # drawing by log-normal weight of scale s is drawing the quantile Phi(z + s)

    rng = np.random.default_rng([7, index])
    size = np.maximum(1, np.rint(rng.lognormal(0.8, 1.26, max(8, rows // 3)))).astype(int)
    size = size[: np.searchsorted(np.cumsum(size), rows) + 1]
    user = (ndtr(rng.standard_normal(len(size)) + 1.85) * users).astype(np.int64)
    name = rng.integers(0, max(1, users // 2), len(size))
    begin = MAY + index * span + rng.integers(0, span, len(size))
    at = np.repeat(np.arange(len(size)), size)[:rows]
    item = (ndtr(rng.standard_normal(rows) + 1.36) * items).astype(np.int64)
    again = np.flatnonzero(rng.random(rows) < 0.25)
    item[again] = item[np.maximum(again - 1, 0)]
    later = (rng.random(rows) * 60e6 * np.sqrt(size[at])).astype(np.int64) // 1000 * 1000
    product = item * 7919 % max(1, items // 33)
    price = np.clip(np.rint(np.exp(np.log(25) + 1.37 * ((item * 31 % 997 / 997) * 4 - 2))), 1, 5000)
    frame = pl.DataFrame({
        "user_id": user[at] * 1_000_003 % users + 1000,
        "session": name[at] + 10**9,
        "stime": pl.Series(begin[at] + later).cast(pl.Datetime("us", "UTC")),
        "event": rng.choice(len(EVENTS), rows, p=np.array(SHARES) / sum(SHARES)).astype(np.uint8),
        "item_id": item * 1_000_003 % items * 3 + 500_000_000,
        "product": product,
        "price": price,
    })  # fmt: skip
    frame = frame.select(
        "user_id",
        pl.format("s{}", "session").alias("session_id"),
        "stime",
        pl.col("event").replace_strict(dict(enumerate(EVENTS)), return_dtype=pl.String).alias("event_id"),
        "item_id",
        pl.format("m{}", pl.col("product") + 10**11).alias("product_id"),
        "price",
        (pl.col("product") % 12).alias("c0_id"),
        (pl.col("product") % 156).alias("c1_id"),
        (pl.col("product") % 3120).alias("c2_id"),
        pl.when(pl.col("product") % 100 >= 19).then(pl.col("product") % 5003).alias("brand_id"),
        pl.format("vintage item {} in condition {}, size {}", "item_id", pl.col("product") % 5, pl.col("product") % 17)
        .alias("name"),
    )  # fmt: skip
    twice = rng.integers(0, rows, max(1, int(rows * 0.00084)))
    frame = pl.concat([frame[: rows - len(twice)], frame[twice]])
    return frame[rng.permutation(len(frame))]


# The three programs


def ours(source: Path, out: Path) -> None:
    import polars as pl

    sys.path.insert(0, str(ROOT))
    from tasks.ingest import ingest

    ingest(pl.scan_parquet(source / "*.parquet"), out, {"val_days": 3, "test_days": 3})


def duckdb(source: Path, out: Path) -> None:
    import duckdb

    out.mkdir()
    run = duckdb.connect(config={"temp_directory": str(out / "spill")}).execute
    run("set preserve_insertion_order = false")
    run("set timezone = 'UTC'")
    run(f"create temp table e as select distinct on ({', '.join(KEY)}) * from '{source}/*.parquet'")
    number = 'cast(row_number() over (order by {0}) as uinteger) as "{1}" from (select distinct {0} from e)'
    run("create temp table u as select user_id, " + number.format("user_id", "user"))
    run("create temp table i as select item_id, " + number.format("item_id", "item"))
    run("create temp table s as select user_id, session_id, " + number.format("user_id, session_id", "session"))
    parquet = "(format parquet, compression zstd, row_group_size 262144)"
    split = f"case when stime < '{VAL}' then 'train' when stime < '{TEST}' then 'val' else 'test' end as split"
    numbered = f'select e.*, "user", item, session, {split} from e join u using (user_id) join i using (item_id)'
    numbered += ' join s using (user_id, session_id) order by "user", stime, item, event_id'
    run(f"copy ({numbered}) to '{out}/events.parquet' {parquet}")
    run(f"copy (from u order by user_id) to '{out}/users.parquet' {parquet}")
    run(f"copy (from i order by item_id) to '{out}/items.parquet' {parquet}")


def pandas(source: Path, out: Path) -> None:
    import pandas as pd

    out.mkdir()
    e = pd.read_parquet(source).drop_duplicates(list(KEY))
    for column, number in (("user_id", "user"), ("item_id", "item")):
        codes, ids = pd.factorize(e[column], sort=True)
        e[number] = (codes + 1).astype("uint32")
        table = pd.DataFrame({number: range(1, len(ids) + 1), column: ids})
        table.to_parquet(out / f"{number}s.parquet", compression="zstd", index=False)
    codes, ids = pd.factorize(
        e["session_id"]
    )  # then pairs as one integer: ngroup over strings takes several times longer
    e["session"] = (pd.factorize(e["user"].to_numpy("int64") * len(ids) + codes)[0] + 1).astype("uint32")
    edges = pd.to_datetime(["1970-01-01", VAL, TEST, "2100-01-01"], format="ISO8601", utc=True)
    e["split"] = pd.cut(e["stime"], edges, right=False, labels=["train", "val", "test"])
    e = e.sort_values(["user", "stime", "item", "event_id"], ignore_index=True)
    e.to_parquet(out / "events.parquet", compression="zstd", index=False, row_group_size=262144)


# Measuring


def measure(name: str, source: Path, out: Path) -> dict:
    """Wall seconds, CPU seconds and peak resident MiB of one whole process."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, "--work", name, str(source), str(out)], cwd=out.parent)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{name} ended with status {status}")
    return {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "peak": used.ru_maxrss / 1024}


def facts(out: Path) -> dict:
    """What all programs must agree on; numbers, ids and the order of rows enter by sums of remainders."""
    import polars as pl

    files = sorted((out / "events").glob("*/part.parquet")) if (out / "events").is_dir() else [out / "events.parquet"]
    rows = pl.scan_parquet(files).with_row_index("row")
    user, item, row = (pl.col(name).cast(pl.Int64) for name in ("user", "item", "row"))
    split = pl.col("split").cast(pl.String)
    found = rows.select(
        pl.len().alias("rows"),
        pl.col("user", "item", "session").max().name.prefix("last_"),
        *((split == name).sum().alias(name) for name in ("train", "val", "test")),
        ((row % 1_000_003) * ((user * 31 + item) % 1009)).sum().alias("order"),
        ((user * 7 + pl.col("user_id")) % 10_007).sum().alias("user_ids"),
        ((item * 7 + pl.col("item_id")) % 10_007).sum().alias("item_ids"),
        pl.col("stime").dt.epoch("us").sum().alias("times"),
        pl.col("price").sum().round(2).alias("prices"),
        pl.col("product_id").str.len_bytes().sum().alias("products"),
    )
    sessions = rows.group_by("session").agg(rows=pl.len().cast(pl.Int64), users=pl.col("user").n_unique())
    sessions = sessions.select(sessions=pl.len(), squares=(pl.col("rows") ** 2).sum(), users=pl.col("users").max())
    tables = {f"{name}_table": pl.scan_parquet(out / f"{name}.parquet").select(pl.len()) for name in ("users", "items")}
    return {
        **found.collect(engine="streaming").row(0, named=True),
        **sessions.collect(engine="streaming").row(0, named=True),
        **{name: table.collect().item() for name, table in tables.items()},
    }


def report(rows: int, runs: dict[str, list[dict]]) -> str:
    """A Markdown table, ratios first."""
    middle = {name: {k: statistics.median(run[k] for run in done) for k in done[0]} for name, done in runs.items()}
    first = next(iter(middle.values()))
    lines = [
        "| program | wall / ours | CPU / ours | peak / ours | wall, s | CPU, s | peak, MiB | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seen in middle.items():
        ratios = " | ".join(f"{seen[key] / first[key]:.2f}" for key in ("wall", "cpu", "peak"))
        walls = [run["wall"] for run in runs[name]]
        wall = f"{seen['wall']:.1f} ({min(walls):.1f} to {max(walls):.1f})"
        lines.append(f"| {name} | {ratios} | {wall} | {seen['cpu']:.1f} | {seen['peak']:.0f} | {len(walls)} |")
    return f"{rows:,} rows\n\n" + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--titles", action="store_true", help="with a column of listing titles")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    source = folder / f"rows-{chosen.rows}{'-titles' * chosen.titles}"
    if not source.is_dir():
        make(source, chosen.rows, chosen.titles)
    runs, agreed = {name: [] for name in chosen.names}, None
    for turn in range(chosen.repeats):
        for name in chosen.names[turn % len(chosen.names) :] + chosen.names[: turn % len(chosen.names)]:
            runs[name].append(measure(name, source, folder / f"out-{name}"))
            found = facts(folder / f"out-{name}")
            print(name, json.dumps(runs[name][-1]), flush=True)
            if found != (agreed := agreed or found):
                raise RuntimeError(f"{name} differs: {found}\nfrom {agreed}")
            shutil.rmtree(folder / f"out-{name}")
    print(f"all agree: {json.dumps(agreed)}\n\n{report(chosen.rows, runs)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        {"ours": ours, "duckdb": duckdb, "pandas": pandas}[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
