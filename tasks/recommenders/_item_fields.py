"""What an item is known by besides its id, as a tower reads it: category, brand, price, words of its name.

Fitted on the training items, written as JSON beside a served model: an item that was listed this morning is encoded as
those of the training were. Words are hashed, so that new ones need no vocabulary.
"""

import json
from collections.abc import Mapping
from zlib import crc32

import numpy as np
import polars as pl

from models.recommend.towers._towers import Fields
from tasks.encoder import Encoder
from tasks.settings import SettingsError

__all__ = ["BUCKET", "CATEGORIES", "ItemFields"]

CATEGORIES = ("c0_id", "c1_id", "c2_id", "brand_id", "item_condition_id", "size_id", "color")
BUCKET = "price_bucket"  # half octaves of 1 + price; ours
PLACES, ROWS = 12, 4096  # words of a name that are read, rows of their table; ours


class ItemFields:
    """An encoder of items.

    Attributes:
        fields: their sizes, for models/recommend/towers/.
        columns: of a raw frame that are read.
    """

    def __init__(self, encoder: Encoder, words: str | None, places: int = PLACES, rows: int = ROWS):
        self.encoder, self.words, self.places, self.rows = encoder, words, places, rows
        word = (places, rows) if words else (0, 0)
        self.fields = Fields(tuple(encoder.sizes), len(encoder.numerical), *word)
        plain = ["price" if name == BUCKET else name for name in [*encoder.categorical, *encoder.numerical]]
        self.columns = list(dict.fromkeys([*plain, *([words] if words else [])]))

    @classmethod
    def fit(cls, events: pl.LazyFrame, chosen: Mapping, place: str) -> "ItemFields":
        """Learn vocabularies and scales.

        Args:
            events: training events, raw columns.
            chosen: `item` (columns that are categories), `numbers`, `words` (a column, or null), `min_count` (values of
                fewer events are unknown, and train its vector); what is not given is every column of the schema that
                the log has.

        Raises:
            SettingsError: a column that the log has not; names those it has.
        """
        there = events.collect_schema().names()
        priced = "price" in there
        categorical = list(chosen.get("item", [name for name in CATEGORIES if name in there] + [BUCKET] * priced))
        numerical = list(chosen.get("numbers", ["price"] * priced))
        words = chosen.get("words", "name" if "name" in there else None)
        wanted = ["price" if name == BUCKET else name for name in [*categorical, *numerical, *([words] * bool(words))]]
        if absent := [name for name in wanted if name not in there]:
            raise SettingsError(f"{place}.fields: the log has no column {', '.join(absent)}; it has {', '.join(there)}")
        if not wanted:
            raise SettingsError(f"{place}.fields: items have none, and a tower needs one; name columns below `item`")
        return cls(Encoder.fit(_bucketed(events), categorical, numerical, min_count=chosen.get("min_count", 2)), words)

    def encode(self, items: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """(N, F + W) int32 and (N, M) float32 of raw rows.

        Raises:
            EncodingError: a column is absent or of another type than in training.
        """
        ids, numbers = self.encoder.transform(_bucketed(items))
        if not self.words:
            return ids, numbers
        return np.concatenate([ids, hashed(items[self.words], self.places, self.rows)], axis=1), numbers

    def to_json(self) -> str:
        """Equal fields give equal bytes."""
        told = {
            "encoder": json.loads(self.encoder.to_json()),
            "words": self.words,
            "places": self.places,
            "rows": self.rows,
        }
        return json.dumps(told, separators=(",", ":"), sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ItemFields":
        """The inverse of `to_json`."""
        told = json.loads(text)
        encoder = Encoder.from_json(json.dumps(told["encoder"]))
        return cls(encoder, told["words"], told["places"], told["rows"])


def hashed(texts: pl.Series, places: int, rows: int) -> np.ndarray:
    """The first words of each text as numbers 1 to rows - 1, 0 for no word: (N, places) int32."""
    lists = texts.cast(pl.String).fill_null("").str.to_lowercase().str.extract_all(r"[\p{L}\p{N}]+").list.head(places)
    long = pl.DataFrame({"row": np.arange(len(texts)), "word": lists}).explode("word", empty_as_null=False)
    known = long["word"].unique()
    number = [1 + crc32(word.encode()) % (rows - 1) for word in known.to_list()]
    long = long.with_columns(place=pl.int_range(pl.len()).over("row"))
    table = pl.DataFrame({"word": known, "number": pl.Series(number, dtype=pl.Int32)})
    long = long.join(table, on="word", how="left", maintain_order="left")
    found = np.zeros((len(texts), places), np.int32)
    found[long["row"].to_numpy(), long["place"].to_numpy()] = long["number"].to_numpy()
    return found


def _bucketed(items: pl.LazyFrame | pl.DataFrame):
    if "price" not in items.lazy().collect_schema():
        return items
    octave = (1 + pl.col("price").cast(pl.Float64).clip(0)).log(2)
    return items.with_columns((2 * octave).floor().cast(pl.Int64).alias(BUCKET))
