"""A served pair of towers -> an index of its items for approximate search, checked against exact search.

    python -m tasks.item_index PACKED OUT
    python -m tasks.item_index PACKED OUT INDEX LISTED.parquet      INDEX and new items, by their raw columns

OUT holds index.faiss (HNSW on inner products, faiss's own format), items.parquet (the id of each of its rows),
vectors.safetensors (for exact search) and manifest.json: the SHA-256 of each, of the packed model, and the recall. An
index that finds less than 95 % of the exact 100 best is not written. An item that is listed later is added from its
fields, by the towers as they are; no vector of another item changes, nor any weight.

    [u ; 0] . [v ; sqrt(longest^2 - |v|^2)] = u . v

The graph holds items with this one number more, which makes all of them equally long: towers whose vectors are not lead
a search to the few longest ones otherwise, and past all others.
Source: Bachrach et al., 2014, doi:10.1145/2645710.2645741, for the added number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.recommend._top import top
from tasks.command import run
from tasks.files import digest, new_folder, read_json, write_json
from tasks.progress import progress
from tasks.recommender import load
from tasks.recommenders._item_fields import ItemFields

__all__ = ["IndexRejected", "ItemIndex", "add_items", "make_index"]

LINKS, EFFORT = 32, 80  # neighbours of an item in the graph, and candidates while it is built; ours
SEARCHES = (64, 128, 256, 512, 1024)  # candidates of a search: the first that finds enough is kept
PART = 16_384  # items between two looks at the clock
DEPTH, RECALL, QUERIES = 100, 0.95, 500
ROUNDED = 1 + 1e-5  # vectors of length 1 are that but for a rounding
FILES = ("index.faiss", "items.parquet", "vectors.safetensors")


class IndexRejected(ValueError):
    """An index that finds too little, or is not what its manifest says."""


@dataclass(frozen=True)
class ItemIndex:
    """An index as it was written; `open` checks it first."""

    graph: object  # a faiss index
    items: pl.Series  # id of each row
    vectors: Tensor  # (I, K)
    manifest: Mapping

    @classmethod
    def open(cls, folder: Path) -> "ItemIndex":
        """Read an index whose files are those of its manifest, byte by byte.

        Raises:
            IndexRejected: names every file that is not; nothing was read.
        """
        import faiss

        manifest = read_json(folder / "manifest.json")
        wrong = [name for name in FILES
                 if not (folder / name).is_file() or digest(folder / name) != manifest["files"].get(name)]  # fmt: skip
        if wrong:
            raise IndexRejected(
                f"{folder}: {', '.join(wrong)} changed since the index was made, or is missing; nothing was read. Make "
                f"it again: python -m tasks.item_index PACKED {folder}"
            )
        items = pl.read_parquet(folder / "items.parquet")["item"]
        vectors = load_file(folder / "vectors.safetensors")["vectors"]
        return cls(faiss.read_index(str(folder / "index.faiss")), items, vectors, manifest)

    def search(self, users: Tensor, k: int = DEPTH) -> tuple[pl.DataFrame, Tensor]:
        """The k best items of each user, by the graph.

        Args:
            users: (B, K), or (B, M, K) of a user's interests, whose lists become one.

        Returns:
            `items` and `scores`, lists, best first; and (B, k) rows of the index, -1 after a list's end.
        """
        rows, scores = _approximate(self.graph, users, min(k, len(self.items)), self.manifest["search"])
        ids = [self.items.gather(row[row >= 0]).to_list() for row in rows]
        told = [score[row >= 0].tolist() for row, score in zip(rows, scores, strict=True)]
        schema = {"items": pl.List(self.items.dtype), "scores": pl.List(pl.Float64)}
        return pl.DataFrame({"items": ids, "scores": told}, schema=schema), rows


def make_index(packed: Path, out: Path) -> dict:
    """Write the folder `out`, whole or not at all.

    Args:
        packed: folder of tasks/recommender.py, `packed/`, of a method of towers/.

    Returns:
        The manifest.

    Raises:
        IndexRejected: the search finds too little at every effort, or the model has no vectors of described items.
    """
    served = load(packed)
    if not hasattr(served.model, "ask"):
        raise IndexRejected(f"{packed} is no pair of towers; an index is made of a method of towers/")
    return _write(out, served.items["item"], served.model.vectors, _queries(served), packed)


def add_items(index: Path, packed: Path, listed: pl.DataFrame, out: Path) -> dict:
    """The index with new items, scored from their fields by towers that never saw them.

    Args:
        index: folder of `make_index`; stays as it is.
        packed: what it was made of.
        listed: one row a new item: the id, in the column that the model's items are named by, and its raw columns.
        out: takes the larger index.

    Returns:
        The manifest.

    Raises:
        IndexRejected: another model's index, an item that is there already, or given twice.
        EncodingError: a column is absent, or of another type than in training.
    """
    known, served = ItemIndex.open(index), load(packed)
    if known.manifest["packed"] != digest(packed / "bundle/manifest.json"):
        raise IndexRejected(f"{index} was made of another model than {packed}; make it again")
    unit = read_json(packed / "bundle/recommender.json")["unit"]
    if unit not in listed.columns:
        raise IndexRejected(f"new items need their ids in the column {unit}; got {', '.join(listed.columns)}")
    new = listed[unit].cast(known.items.dtype)
    if twice := new.is_in(known.items.implode()).sum() + new.len() - new.n_unique():
        raise IndexRejected(f"{twice} of {len(new)} new items are in {index} already, or given twice; take them out")
    fields = ItemFields.from_json((packed / "bundle/item_fields.json").read_text())
    with torch.inference_mode():
        vectors = served.model.model.item_vectors(*map(torch.from_numpy, fields.encode(listed)))
    items, all_of_them = pl.concat([known.items, new]), torch.cat([known.vectors, vectors])
    longest = known.manifest["longest"]
    # One that is longer than all before makes a new graph: there is no number that makes it as long as the others.
    graph = _added(known.graph, even(vectors, longest)) if _longest(vectors) <= longest * ROUNDED else None
    return _write(out, items, all_of_them, _queries(served), packed, graph)


def exact(users: Tensor, items: Tensor, k: int) -> Tensor:
    """Rows (B, k) of the best items (I, K) for users (B, K) or (B, M, K), by all products."""
    score = torch.einsum("bmk,ik->bmi", users, items).amax(1) if users.dim() == 3 else users @ items.mT
    return top(score, min(k, len(items)))[1]


def even(vectors: Tensor, longest: float) -> Tensor:
    """Vectors (I, K), none longer than `longest`, with the number that makes all as long: (I, K + 1).

    >>> even(torch.tensor([[3.0, 4.0], [0.0, 3.0]]), 5.0)
    tensor([[3., 4., 0.],
            [0., 3., 4.]])
    """
    rest = (longest**2 - vectors.double().square().sum(1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([vectors, rest.to(vectors.dtype)], 1)


def _longest(vectors: Tensor) -> float:
    return float(vectors.double().norm(dim=1).max())


def _write(out: Path, items: pl.Series, vectors: Tensor, queries: Tensor, packed: Path, graph=None) -> dict:
    import faiss

    vectors, longest = vectors.float().contiguous(), _longest(vectors)
    if graph is None:
        empty = faiss.IndexHNSWFlat(vectors.shape[1] + 1, LINKS, faiss.METRIC_INNER_PRODUCT)
        graph = _added(empty, even(vectors, longest))
    search, recall = _effort(graph, queries, exact(queries, vectors, DEPTH))
    with new_folder(out) as folder:
        faiss.write_index(graph, str(folder / "index.faiss"))
        items.alias("item").to_frame().write_parquet(folder / "items.parquet")
        save_file({"vectors": vectors.clone()}, folder / "vectors.safetensors")
        manifest = {
            "files": {name: digest(folder / name) for name in FILES},
            "packed": digest(packed / "bundle/manifest.json"),
            "items": len(items),
            "width": vectors.shape[1],
            "longest": longest,
            "search": search,
            f"recall@{DEPTH}": recall,
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def _added(graph, vectors: Tensor):
    import faiss

    faiss.omp_set_num_threads(1)  # with several threads the graph, and so the file's hash, is another each time
    graph.hnsw.efConstruction = EFFORT
    rows = np.ascontiguousarray(vectors.float().numpy())
    with progress(len(rows), "item_index", "item") as bar:
        for first in range(0, len(rows), PART):
            graph.add(rows[first : first + PART])
            bar.update(len(rows[first : first + PART]))
    return graph


def _effort(graph, queries: Tensor, expected: Tensor) -> tuple[int, float]:
    """The least effort that finds enough, and the share that it finds."""
    for search in SEARCHES:
        found, _ = _approximate(graph, queries, expected.shape[1], search)
        recall = float((found[:, :, None] == expected[:, None]).any(1).float().mean())
        if recall >= RECALL:
            return search, recall
    raise IndexRejected(
        f"the index finds {recall:.3f} of the {expected.shape[1]} best items, less than {RECALL}, with {search} "
        f"candidates; nothing was written. Take it out of recommenders.indexes and rank all items (tasks/top_k.py), or "
        f"train the towers longer: hardly trained ones put all items in one place"
    )


def _approximate(graph, users: Tensor, k: int, search: int) -> tuple[Tensor, Tensor]:
    """Rows and scores (B, k) that the graph finds, best first."""
    graph.hnsw.efSearch = max(search, k)
    several = users.dim() == 3
    asked = torch.nn.functional.pad(users.float().reshape(-1, users.shape[-1]), (0, 1))
    score, row = graph.search(np.ascontiguousarray(asked.numpy()), k)
    score, row = torch.from_numpy(score), torch.from_numpy(row)
    if not several:
        return row, score.masked_fill(row < 0, -torch.inf)
    score, row = (part.view(len(users), -1) for part in (score, row))
    order = row.sort(dim=1, stable=True)
    again = torch.zeros_like(row, dtype=torch.bool)
    again[:, 1:] = (
        order.values.diff(dim=1) == 0
    )  # an item that several interests found counts once, with its best score
    best = torch.full_like(score, -torch.inf).scatter_reduce(
        1, _first(order.values), score.gather(1, order.indices), "amax"
    )
    best = best.masked_fill(again | (order.values < 0), -torch.inf).sort(dim=1, descending=True, stable=True)
    chosen = order.values.gather(1, best.indices)[:, :k]
    return chosen.masked_fill(best.values[:, :k] == -torch.inf, -1), best.values[:, :k]


def _first(sorted_BC: Tensor) -> Tensor:
    """Place of the first equal value in each sorted row: (B, C)."""
    return torch.searchsorted(sorted_BC.contiguous(), sorted_BC.contiguous())


def _queries(served) -> Tensor:
    """Vectors of users to measure with: the first of the training's, known by what they had then."""
    users = served.model.users.rows["user"].head(QUERIES)
    none = torch.empty(0, dtype=torch.int64)
    with torch.inference_mode():
        return served.model.ask(users, none, none)[0].clone()


def main(packed: str, out: str, index: str | None = None, listed: str | None = None) -> None:
    """python -m tasks.item_index PACKED OUT [INDEX LISTED.parquet]"""
    if (index is None) != (listed is None):
        raise IndexRejected("to add items, give an index and a table of new items: PACKED OUT INDEX LISTED.parquet")
    if index is None:
        made = make_index(Path(packed), Path(out))
    else:
        made = add_items(Path(index), Path(packed), pl.read_parquet(listed), Path(out))
    print(f"{out}: {made['items']} items of width {made['width']}; recall@{DEPTH} {made[f'recall@{DEPTH}']:.4f} with "
          f"{made['search']} candidates, index {made['files']['index.faiss'][:12]}")  # fmt: skip


if __name__ == "__main__":
    run(main)
