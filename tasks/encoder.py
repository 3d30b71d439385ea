"""Raw columns -> the integers and the scaled numbers that a model reads; fitted on the training rows only.

A categorical field has one row per value kept: 0 is unknown, 1 is missing (null), then the values in ascending order,
so that the ids depend on the set of values and never on the order of the rows. A numerical column is scaled to [0, 1]:

    x' = (f(clip(x, low, high)) - f(low)) / (f(high) - f(low)),    f = log1p for a skewed column, else the identity

with low, high and the median, which replaces a null, taken from the training rows.
The file imports polars and numpy alone: it travels with a served model as it is.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import polars as pl

__all__ = ["Encoder", "EncodingError", "unfit"]

UNKNOWN, MISSING, FIRST = 0, 1, 2  # ids of a categorical field
FORMAT = 1
SMALL = 256  # rows up to which a plain look-up beats the set-up of a join
FAMILIES = {"integer": pl.Int64, "string": pl.String, "boolean": pl.Boolean, "number": pl.Float64}


class EncodingError(ValueError):
    """Columns that cannot be encoded; names each of them and why."""


@dataclass(frozen=True)
class Category:
    """One categorical field: its values in ascending order are the rows 2, 3, ... of its embedding."""

    name: str
    family: str  # "integer", "string" or "boolean"
    values: list

    @property
    def size(self) -> int:
        """Rows of the embedding, unknown and missing included."""
        return FIRST + len(self.values)

    @cached_property
    def series(self) -> tuple[pl.Series, pl.Series]:
        """Values and their ids."""
        ids = np.arange(FIRST, self.size, dtype=np.int32)
        return pl.Series(self.values, dtype=FAMILIES[self.family]), pl.Series(ids)

    @cached_property
    def lookup(self) -> dict:
        return {None: MISSING} | {value: id for id, value in enumerate(self.values, FIRST)}

    @cached_property
    def array(self) -> np.ndarray:
        return np.array(self.values, dtype=np.int64)

    def few(self, column: pl.Series) -> np.ndarray:
        """Ids of a short column without building anything of the vocabulary's size twice."""
        if self.family != "integer" or column.null_count():
            return np.array([self.lookup.get(value, UNKNOWN) for value in column.to_list()], dtype=np.int32)
        value = column.to_numpy()
        place = np.searchsorted(self.array, value)
        known = place < len(self.array)
        known[known] = self.array[place[known]] == value[known]
        return np.where(known, place + FIRST, UNKNOWN).astype(np.int32)

    def many(self) -> pl.Expr:
        """Ids of a long column."""
        column = pl.col(self.name).cast(FAMILIES[self.family])
        if not self.values:
            found = pl.lit(UNKNOWN, pl.Int32)
        else:
            found = column.replace_strict(*self.series, default=UNKNOWN, return_dtype=pl.Int32)
        return pl.when(column.is_null()).then(MISSING).otherwise(found).cast(pl.Int32).alias(self.name)


@dataclass(frozen=True)
class Scale:
    """One numerical column: its range and median over the training rows, in the column's own unit."""

    name: str
    log1p: bool
    low: float
    high: float
    median: float

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Scaled to [0, 1]; a column that was constant in training is 0."""
        value = np.clip(value, self.low, self.high)
        low, high = self.low, self.high
        if self.log1p:
            value, low, high = np.log1p(value), np.log1p(low), np.log1p(high)
        return (value - low) / (high - low) if high > low else np.zeros_like(value)


class Encoder:
    """Fields in their order, with everything learned from the training rows."""

    def __init__(self, categories: Iterable[Category], scales: Iterable[Scale]):
        self.categories, self.scales = list(categories), list(scales)

    @property
    def categorical(self) -> list[str]:
        """Names of the categorical fields, in the order of the encoded columns."""
        return [field.name for field in self.categories]

    @property
    def numerical(self) -> list[str]:
        """Names of the numerical columns, in the order of the encoded columns."""
        return [scale.name for scale in self.scales]

    @property
    def sizes(self) -> list[int]:
        """Embedding rows of each categorical field, row 0 included."""
        return [field.size for field in self.categories]

    @classmethod
    def fit(
        cls,
        frame: pl.DataFrame | pl.LazyFrame,
        categorical: Iterable[str],
        numerical: Iterable[str],
        min_count: int = 1,
        log1p: Iterable[str] | None = None,
    ) -> "Encoder":
        """Learn vocabularies and scales from training rows, one column in memory at a time.

        Args:
            min_count: a value seen less often is unknown. With 1, no training row ever has the id 0, so a model never
                learns what to do with an unseen value; with 2 it learns that from the values seen once.
            log1p: the numerical columns to take the logarithm of; None decides by their skew, see `skewed`.

        Raises:
            EncodingError: a column is absent, of a type that cannot be encoded, NaN or infinite, or there are no rows;
                names all of them.
        """
        frame, categorical, numerical = frame.lazy(), list(categorical), list(numerical)
        schema = frame.collect_schema()
        faults = unfit(schema, categorical, numerical)
        if log1p is not None:
            log1p = set(log1p)
            faults += [f"log1p of {name}, which is not a numerical feature" for name in sorted(log1p - set(numerical))]
        if not faults and not frame.select(pl.len()).collect().item():
            faults = ["the training rows are empty"]
        _refuse(faults, "cannot fit the encoder")
        categories = [_category(frame, name, family(schema[name]), min_count) for name in categorical]
        scales, faults = [], []
        for name in numerical:
            try:
                scales.append(_scale(frame, name, log1p))
            except EncodingError as error:
                faults.append(str(error))
        _refuse(faults, "cannot fit the encoder")
        return cls(categories, scales)

    def transform(self, frame: pl.DataFrame, strict: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Encode N raw rows.

        Args:
            strict: refuse a frame that lacks a column; else the column counts as missing in every row.

        Returns:
            (N, F) int32 ids and (N, M) float32 in [0, 1].

        Raises:
            EncodingError: columns that are absent (when strict), of another type than in training, NaN or infinite;
                names all of them.
        """
        self._check(frame, strict)
        rows = len(frame)
        ids = np.full((rows, len(self.categories)), MISSING, dtype=np.int32)
        values = np.empty((rows, len(self.scales)), dtype=np.float32)
        here = [(place, field) for place, field in enumerate(self.categories) if _known(frame, field.name)]
        if rows <= SMALL:
            for place, field in here:
                ids[:, place] = field.few(frame[field.name])
        else:
            found = frame.select(field.many() for _, field in here)
            for place, field in here:
                ids[:, place] = found[field.name].to_numpy()
        faults = []
        for place, scale in enumerate(self.scales):
            if not _known(frame, scale.name):
                values[:, place] = scale(np.array(scale.median))
                continue
            value = frame[scale.name].cast(pl.Float64).fill_null(scale.median).to_numpy()
            if bad := rows - int(np.isfinite(value).sum()):
                faults.append(f"{scale.name} is NaN or infinite in {bad} of {rows} rows")
            else:
                values[:, place] = scale(value)
        _refuse(faults, "cannot encode")
        return ids, values

    def to_json(self) -> str:
        """Equal encoders give equal bytes."""
        content = {
            "format": FORMAT,
            "categorical": [asdict(field) for field in self.categories],
            "numerical": [asdict(scale) for scale in self.scales],
        }
        return json.dumps(content, separators=(",", ":"), sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Encoder":
        """The inverse of `to_json`.

        Raises:
            EncodingError: the text is not that of an encoder.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise EncodingError(f"the encoder is of format {content['format']}, this code reads {FORMAT}")
            categories = [Category(**field) for field in content["categorical"]]
            return cls(categories, [Scale(**scale) for scale in content["numerical"]])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise EncodingError(f"this is not an encoder's JSON ({error}); run `dvc repro features` again") from None

    def _check(self, frame: pl.DataFrame, strict: bool) -> None:
        schema, faults = frame.schema, []
        wanted = [(field.name, field.family) for field in self.categories] + [
            (name, "number") for name in self.numerical
        ]
        for name, expected in wanted:
            if name not in schema:
                faults += [f"{name} is absent"] * strict
                continue
            found = family(schema[name])
            fits = found in ("integer", "number", "boolean") if expected == "number" else found == expected
            if not fits and found != "null":
                faults.append(f"{name} is {schema[name]}, in training it was {expected}")
        _refuse(faults, "cannot encode")


def family(dtype: pl.DataType) -> str:
    """What kind of value a column holds: integer, string, boolean, number, null, or other."""
    if dtype.is_integer():
        return "integer"
    if dtype.is_float():
        return "number"
    if isinstance(dtype, (pl.String, pl.Categorical, pl.Enum)):
        return "string"
    return {pl.Boolean: "boolean", pl.Null: "null"}.get(type(dtype), "other")


def unfit(schema: Mapping[str, pl.DataType], categorical: list[str], numerical: list[str]) -> list[str]:
    """Why columns of these types cannot be encoded as declared, one sentence each; empty when they can."""
    declared = [*categorical, *numerical]
    faults = [f"{name} is declared twice" for name in sorted({name for name in declared if declared.count(name) > 1})]
    for kind, names, allowed in (
        ("categorical", categorical, ("integer", "string", "boolean")),
        ("numerical", numerical, ("integer", "number", "boolean")),
    ):
        for name in names:
            if name not in schema:
                faults.append(f"{name} is not a column")
            elif family(schema[name]) not in (*allowed, "null"):
                faults.append(
                    f"{name} is {schema[name]}; a {kind} feature is {', '.join(allowed[:-1])} or {allowed[-1]}"
                )
    return faults


def skewed(value: np.ndarray) -> bool:
    """Whether a column is never negative and has a right tail at least three times as long as its left one.

    The tails reach from the median to the quantiles .99 and .01. The rule is ours; quantiles, unlike a third moment, do
    not depend on the order of a sum.
    """
    low, middle, high = np.quantile(value, [0.01, 0.5, 0.99], method="lower")
    return bool(value.min() >= 0 and high - middle > 3 * (middle - low))


def _category(frame: pl.LazyFrame, name: str, kind: str, min_count: int) -> Category:
    kind = "string" if kind == "null" else kind  # a column without any value: every value is unknown
    values = frame.select(pl.col(name).cast(FAMILIES[kind])).drop_nulls().group_by(name).len()
    kept = values.filter(pl.col("len") >= min_count).select(name).sort(name).collect(engine="streaming")
    return Category(name, kind, kept.to_series().to_list())


def _scale(frame: pl.LazyFrame, name: str, log1p: set[str] | None) -> Scale:
    value = frame.select(pl.col(name).cast(pl.Float64)).drop_nulls().collect().to_series().to_numpy()
    if bad := len(value) - int(np.isfinite(value).sum()):
        raise EncodingError(f"{name} is NaN or infinite in {bad} of {len(value)} rows")
    if not len(value):
        return Scale(name, False, 0.0, 0.0, 0.0)
    chosen = skewed(value) if log1p is None else name in log1p
    if chosen and value.min() < 0:
        raise EncodingError(f"log1p of {name}, which goes down to {value.min()}")
    return Scale(name, chosen, float(value.min()), float(value.max()), float(np.quantile(value, 0.5, method="lower")))


def _known(frame: pl.DataFrame, name: str) -> bool:
    return name in frame.columns and frame.schema[name] != pl.Null


def _refuse(faults: list[str], what: str) -> None:
    if faults:
        raise EncodingError(f"{what}: {'; '.join(faults)}")
