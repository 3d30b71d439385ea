"""What items are, beside their ids: the words of their titles, brands and categories, and the groups they belong to."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import polars as pl

from tasks.sequences import FIRST, UNKNOWN, SequenceError, Vocabulary

__all__ = ["groups_of", "words_of"]


def words_of(
    log: pl.DataFrame,
    vocabulary: Vocabulary,
    unit: str = "item",
    columns: Sequence[str] = ("name", "brand_name", "c2_name"),
    most: int = 24,
    words: int = 32_768,
    min_count: int = 2,
) -> tuple[np.ndarray, int]:
    """Each item's text as word ids: (I + 1, most) int64, padding 0 behind, and the number of words.

    Words are runs of letters and digits in lower case; those of other columns than the first carry the column's name,
    so that the brand Apple is no fruit. The most frequent words of the training items are kept; 1 is any other.

    Raises:
        SequenceError: none of the columns is there.
    """
    there = [name for name in columns if name in log.columns]
    if not there:
        raise SequenceError(f"the log has none of {', '.join(columns)}; items without a text need ready vectors")
    first = log.sort("stime", maintain_order=True).unique(unit, keep="first", maintain_order=True)
    trained = set(log.filter(pl.col("split") == "train")[unit].unique().to_list())
    told, counts = [], Counter()
    prefix = ["" if name == columns[0] else f"{name}:" for name in there]
    for row in first.select(unit, *there).iter_rows():
        texts = zip(prefix, row[1:], strict=True)
        found = [mark + word for mark, text in texts for word in re.findall(r"\w+", (text or "").lower())]
        told.append(found[:most])
        if row[0] in trained:
            counts.update(set(found))
    kept = sorted(word for word, count in counts.items() if count >= min_count)
    kept = sorted(kept, key=lambda word: -counts[word])[: words - FIRST]
    number = {word: place + FIRST for place, word in enumerate(kept)}
    content = np.zeros((vocabulary.items + 1, most), np.int64)
    for row, item in zip(told, vocabulary.encode(first[unit]), strict=True):
        if item != UNKNOWN:
            content[item, : len(row)] = [number.get(word, UNKNOWN) for word in row]
    content[UNKNOWN, 0] = UNKNOWN
    return content, len(kept) + FIRST


def groups_of(log: pl.DataFrame, vocabulary: Vocabulary, column: str, unit: str = "item") -> tuple[np.ndarray, int]:
    """Each item's value of a column (category, brand): (I + 1,) int64, 0 for none, and the number of groups."""
    first = log.sort("stime", maintain_order=True).unique(unit, keep="first", maintain_order=True)
    known = Vocabulary.of(first[column])
    group = np.zeros(vocabulary.items + 1, np.int64)
    ids = vocabulary.encode(first[unit])
    number = known.encode(first[column]).astype(np.int64) - UNKNOWN
    group[ids[ids != UNKNOWN]] = number[ids != UNKNOWN]
    return group, len(known.values) + 1
