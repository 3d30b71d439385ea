"""Texts of all listings -> their numbers, each distinct text encoded once, however often the stage runs.

    text/                   what travels with the backbone: text.json, projection.safetensors, model/
    table.npy               (T + 1, K) float32, the numbers of the distinct texts; row 0 is "no words": zeros
    index/<split>.npy       (N, 1 + H) int32: the rows of the table of each row's listing, and of the H before it
    manifest.json           its names, counts and hashes

Vectors are kept in a memo beside the output, by encoder and text: when listings are added, only these are encoded. The
axes come from the training rows' texts. H is how many columns hist_<column>_1, hist_<column>_2 ... the rows have (see
`texts` of recommend.features). Without an encoder, all that is written is a manifest that says so.
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from itertools import count as count_up
from pathlib import Path

import numpy as np
import polars as pl

from tasks.command import run
from tasks.features import NO_FEATURES
from tasks.files import digest, locked, new_folder, read_json, write_json
from tasks.progress import progress
from tasks.texts import Projection, TextEncoder, past, save_projection, text_of
from tasks.training import use_threads

__all__ = ["NoText", "make_vectors"]

SPLITS = ("train", "val", "test")
SHARD = 8192  # texts encoded between two writes: what a kill can cost, and what is in memory
CHUNK = 250_000  # rows of features at a time
KEPT = 2  # encoders whose vectors are kept; the one used longest ago goes first


class NoText(ValueError):
    """The rows have no words to encode."""


def make_vectors(features: Path, encoder: Path, out: Path, memo: Path) -> dict:
    """Write the folder `out` and return its manifest.

    Args:
        features: folder of tasks/features.py.
        encoder: folder of tasks/listing_encoder.py.
        memo: folder of vectors; safe to delete at any time.

    Raises:
        NoText: a column of the text is absent, or no training row has words.
        UnreadableEncoder: the encoder cannot be loaded.
    """
    about, data = read_json(encoder / "encoder.json"), digest(features / "manifest.json")
    if about["content"] is None:
        with new_folder(out) as folder:
            write_json(folder / "manifest.json", {"content": None, "names": []})
        return {"content": None, "names": []}
    use_threads()
    started = time.monotonic()
    rows = {split: pl.scan_parquet(features / "rows" / f"{split}.parquet") for split in SPLITS}
    schema = rows["train"].collect_schema()
    if absent := [name for name in about["columns"] if name not in schema]:
        raise NoText(f"recommend.backbone.text: the rows in {features} have no {', '.join(absent)}; "
                     f"name other columns below `columns`, or set text to null")  # fmt: skip
    history = next(k for k in count_up() if not all(name in schema for name in past(about["columns"], k + 1)[k]))
    columns = [about["columns"], *past(about["columns"], history)]
    if told := [f"{name}: {NO_FEATURES[name]}" for name in about["columns"] if name in NO_FEATURES]:
        raise NoText(f"recommend.backbone.text: no words of a listing are in {'; '.join(told)}")
    texts, in_train = _distinct(rows, columns)
    if not in_train.any():
        raise NoText(f"recommend.backbone.text: no training row of {features} has words in "
                     f"{', '.join(about['columns'])}; name other columns, or set text to null")  # fmt: skip
    place = memo / about["content"][:32]
    with locked(str(memo)):  # of two checkouts' stages, the second finds what the first encoded
        shard, row, new = _encoded(texts, encoder / "model", place)
        _forget(memo, place)
        projection = Projection.fit(_gather(place, shard, row, in_train), about["width"])
        with new_folder(out) as folder:
            kept = len(projection.scale)
            names = [*(f"text_{number}" for number in range(kept)), *(f"alike_{k + 1}" for k in range(history))]
            table = np.lib.format.open_memmap(folder / "table.npy", "w+", np.float32, (len(texts) + 1, kept))
            table[0] = 0
            for number in np.unique(shard):
                here = np.flatnonzero(shard == number)
                table[here + 1] = projection(_open(place, number)[row[here]])
            table.flush()
            missing = _index(rows, columns, texts, folder)
            _pack(about | {"history": history}, encoder, projection, folder / "text")
            manifest = {
                "content": about["content"],
                "columns": about["columns"],
                "history": history,
                "names": names,
                "width": len(projection.mean),
                "texts": len(texts),
                "texts_in_train": int(in_train.sum()),
                "missing": missing,
                "features": data,
                "table": digest(folder / "table.npy"),
            }
            write_json(folder / "manifest.json", manifest)
    print(f"{out}: {len(texts):,} texts, {new:,} of them encoded now; {manifest['width']} numbers each, {len(names)} "
          f"kept; {time.monotonic() - started:.1f} s")  # fmt: skip
    return manifest


def _distinct(rows: dict[str, pl.LazyFrame], columns: list[list[str]]) -> tuple[pl.Series, np.ndarray]:
    """All texts in ascending order, and which of them occur in train."""
    found = [frame.select(text_of(names), train=pl.lit(split == "train")) for split, frame in rows.items()
             for names in columns]  # fmt: skip
    texts = pl.concat([frame.drop_nulls().unique() for frame in found]).group_by("text").agg(pl.col("train").any())
    texts = texts.sort("text").collect(engine="streaming")
    return texts["text"], texts["train"].to_numpy()


def _encoded(texts: pl.Series, model: Path, place: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Encode what is new; where each text's vector lies, shard and row, and how many were new."""
    keys = pl.DataFrame({"key": [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]})
    place.mkdir(parents=True, exist_ok=True)
    known = _known(place)
    new = np.flatnonzero(~keys["key"].is_in(known["key"].implode()).to_numpy())
    if len(new):
        encode = TextEncoder(model)
        first = 1 + (known["shard"].max() if len(known) else -1)
        with progress(len(new), "listings", "text") as bar:
            for number, start in enumerate(range(0, len(new), SHARD), first):
                chosen = new[start : start + SHARD]
                np.save(place / f"{number:06d}.npy", encode(texts[chosen].to_list()), allow_pickle=False)
                fresh = place / f".{number:06d}.parquet"
                keys[chosen].write_parquet(fresh)
                fresh.rename(place / f"{number:06d}.parquet")  # from here on the shard counts
                bar.update(len(chosen))
        known = _known(place)
    found = keys.join(known, on="key", how="left", maintain_order="left")
    return found["shard"].to_numpy(), found["row"].to_numpy(), len(new)


def _known(place: Path) -> pl.DataFrame:
    """Key of each text in the memo, the shard and the row where its vector lies."""
    none = pl.DataFrame(schema={"key": pl.String, "shard": pl.Int64, "row": pl.UInt32})
    parts = [pl.read_parquet(path).with_row_index("row").select("key", pl.lit(int(path.stem), pl.Int64).alias("shard"),
             "row") for path in sorted(place.glob("[0-9]*.parquet"))]  # fmt: skip
    return pl.concat([none, *parts]).unique("key", keep="first", maintain_order=True)


def _open(place: Path, number: int) -> np.ndarray:
    return np.lib.format.open_memmap(place / f"{number:06d}.npy", mode="r")


def _gather(place: Path, shard: np.ndarray, row: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    for number in np.unique(shard[chosen]):
        yield np.array(_open(place, number)[np.sort(row[chosen & (shard == number)])])


def _index(rows: dict[str, pl.LazyFrame], columns: list[list[str]], texts: pl.Series, folder: Path) -> dict[str, float]:
    """Write each split's index; the share of its rows whose listing has no words."""
    (folder / "index").mkdir()
    numbered, missing = pl.DataFrame({"text": texts}).with_row_index("number", offset=1), {}
    for split, frame in rows.items():
        count = frame.select(pl.len()).collect().item()
        index = np.lib.format.open_memmap(folder / f"index/{split}.npy", "w+", np.int32, (count, len(columns)))
        for start in range(0, count, CHUNK):
            for place, names in enumerate(columns):
                piece = frame.slice(start, CHUNK).select(text_of(names)).collect()
                piece = piece.join(numbered, on="text", how="left", maintain_order="left")
                index[start : start + CHUNK, place] = piece["number"].fill_null(0).to_numpy()
        missing[split] = float((index[:, 0] == 0).mean())
        index.flush()
    return missing


def _pack(about: dict, encoder: Path, projection: Projection, folder: Path) -> None:
    shutil.copytree(encoder / "model", folder / "model")
    save_projection(projection, folder / "projection.safetensors")
    write_json(folder / "text.json", {key: about[key] for key in ("content", "columns", "history")})


def _forget(memo: Path, newest: Path) -> None:
    newest.touch()
    others = sorted((path for path in memo.iterdir() if path.is_dir() and path != newest),
                    key=lambda path: path.stat().st_mtime, reverse=True)  # fmt: skip
    for old in others[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def main(features: str, encoder: str, out: str, memo: str) -> None:
    """python -m tasks.vectors FEATURES LISTING_ENCODER OUT MEMO"""
    make_vectors(Path(features), Path(encoder), Path(out), Path(memo))


if __name__ == "__main__":
    run(main)
