"""The best items for many users or histories: a registered recommender and a Parquet file in, a Parquet file out.

    python -m tasks.top_k models:/recommender-similar@champion requests.parquet lists.parquet --k 20
    python -m tasks.top_k artifacts/recommender/similar/packed requests.parquet lists.parquet --allowed in_stock.parquet

Requests have the columns `user` and/or `history` (a list of item ids, oldest first); every other column is kept. The
answer has as many rows in the same order, with `items`, `scores` and `known`. Rows are read, answered and written in
parts, so memory does not grow with the file.
"""

from argparse import ArgumentParser
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pyarrow.parquet as pq

from tasks import score, track
from tasks.command import run
from tasks.files import digest, read_json
from tasks.progress import progress

__all__ = ["open_recommender", "top_k"]

PART = 8192  # requests at a time
CHECKOUT = Path(__file__).parents[1]


def top_k(model, requests: Path, out: Path, k: int = 20, allowed: pl.Series | None = None) -> int:
    """Write the k best items of every request, whole or not at all.

    Args:
        model: from `open_recommender`.
        requests: Parquet with `user` and/or `history`.
        allowed: item ids that may be shown; None for all.

    Returns:
        How many requests were answered.

    Raises:
        ValueError: it is no Parquet file, has neither column, has one of the answer's already, or ids of another type.
    """
    try:
        file = pq.ParquetFile(requests)
    except (OSError, ValueError) as error:
        raise ValueError(f"{requests} is not a Parquet file: {error}") from None
    if taken := {"items", "scores", "known"} & set(file.schema_arrow.names):
        raise ValueError(f"{requests} has the columns {', '.join(sorted(taken))} already; name them otherwise")
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh, writer, done = out.with_name(f".{out.name}.new"), None, 0
    try:
        with progress(file.metadata.num_rows, "top_k", "request") as bar:
            for part in file.iter_batches(PART) if file.metadata.num_rows else [file.schema_arrow.empty_table()]:
                rows = pl.from_arrow(part)
                answer = rows.hstack(model.lists(rows, k, allowed)).to_arrow()
                writer = writer or pq.ParquetWriter(fresh, answer.schema, compression="zstd")
                writer.write_table(answer.cast(writer.schema))
                done += len(rows)
                bar.update(len(rows))
        writer.close()
        fresh.replace(out)
    finally:
        fresh.unlink(missing_ok=True)
    return done


def open_recommender(address: str):
    """The recommender of a registry's version, or of a packed folder; its files are checked before any of it runs.

    Raises:
        ChangedVersion: the version's files do not have the hash that the registry holds.
        RegistryError: there is no such version.
        ValueError: the folder holds no recommender.
    """
    from tasks import recommender

    if not address.startswith("models:/"):
        if not (Path(address) / "bundle/recommender.json").is_file():
            raise ValueError(f"{address} holds no recommender; give models:/recommender-<name>@champion, or the folder "
                             f"artifacts/recommender/<name>/packed")  # fmt: skip
        return recommender.load(Path(address))
    version = track.resolve(address)
    with TemporaryDirectory() as place:
        folder = track.model_files(version, Path(place))
        score.check(folder, version.tags.get("content_sha256"), address)
        shipped = read_json(folder / "artifacts/bundle/manifest.json")["code"]
        served = {name: f"tasks/{here}" for here, name in recommender.SERVED.items()}
        here = {name: CHECKOUT / served.get(name, name) for name in shipped}
        if other := [name for name, path in here.items() if not path.is_file() or digest(path) != shipped[name]]:
            words = f"{version.uri} was registered with another {', '.join(other)} than this checkout has"
            raise ValueError(f"{words}; take revision {version.tags.get('git_revision')}, or use tasks.score")
        return recommender.load(folder, "artifacts/bundle")


def main(*words: str) -> None:
    """python -m tasks.top_k MODEL REQUESTS.parquet OUT.parquet [--k 20] [--allowed ITEMS.parquet]"""
    parser = ArgumentParser(prog="python -m tasks.top_k", description="The best items for many users or histories.")
    parser.add_argument("model", help="models:/recommender-<name>@champion, or a packed folder")
    parser.add_argument("requests", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--allowed", type=Path, help="Parquet whose column `item` lists what may be shown")
    told = parser.parse_args(words)
    allowed = pl.read_parquet(told.allowed, columns=["item"])["item"] if told.allowed else None
    done = top_k(open_recommender(told.model), told.requests, told.out, told.k, allowed)
    print(f"{told.out}: {done} requests answered with up to {told.k} items each by {told.model}")


if __name__ == "__main__":
    run(main)
