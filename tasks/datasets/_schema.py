"""The event schema that every dataset is read into: MerRec's columns, their types, and which of them must be there."""

from collections.abc import Mapping

import polars as pl

__all__ = ["COLUMNS", "IDS", "MERREC_EVENTS", "REQUIRED", "SchemaError", "conform"]

# In funnel order.
MERREC_EVENTS = ("item_view", "item_like", "item_add_to_cart_tap", "offer_make", "buy_start", "buy_comp")

COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "user_id": pl.Int64,
    "session_id": pl.String,  # unique only together with user_id; null: ingestion cuts by idle time
    "sequence_id": pl.String,
    "stime": pl.Datetime("us", "UTC"),
    "event_id": pl.String,
    "item_id": pl.Int64,
    "product_id": pl.String,
    "name": pl.String,
    "price": pl.Float64,
    "c0_id": pl.Int64,
    "c0_name": pl.String,
    "c1_id": pl.Int64,
    "c1_name": pl.String,
    "c2_id": pl.Int64,
    "c2_name": pl.String,
    "brand_id": pl.Int64,
    "brand_name": pl.String,
    "item_condition_id": pl.Int64,
    "item_condition_name": pl.String,
    "size_id": pl.Int64,
    "size_name": pl.String,
    "color": pl.String,
    "shipper_id": pl.Int64,
    "shipper_name": pl.String,
    "sequence_length": pl.Int64,
}
REQUIRED = ("user_id", "stime", "event_id", "item_id")  # present, and never null
IDS = tuple(name for name, dtype in COLUMNS.items() if name.endswith("_id") and dtype == pl.Int64)  # String will do too


class SchemaError(ValueError):
    """A frame's columns or types are not the event schema's."""


def conform(frame: pl.LazyFrame, own: Mapping[str, pl.DataType | type[pl.DataType]] | None = None) -> pl.LazyFrame:
    """Select, cast and order the schema's columns; keep the dataset's own columns after them, drop every other.

    Ids may be integers or strings and stay so; a time without a zone is read as UTC; a column without any value
    (Parquet's null type) takes its type from the schema. Optional columns may be missing. Nulls and ranges are not
    judged here: that is what a dataset's expectations are for.

    Args:
        frame: events, one row each; only its schema is read.
        own: names and types of columns that the schema does not know.

    Returns:
        The columns present, in the schema's order, with exactly its types (ids Int64 or String).

    Raises:
        SchemaError: names every missing required column, every wrong type and every own column that is missing or takes
            a name of the schema, all at once.
    """
    own = dict(own or {})
    found = frame.collect_schema()
    faults = [f"{name}: missing" for name in (*REQUIRED, *own) if name not in found]
    faults += [
        f"{name}: the schema has this name, so it cannot be the dataset's own" for name in own if name in COLUMNS
    ]
    chosen = []
    for name, wanted in (COLUMNS | own).items():
        if name in found:
            column = _cast(pl.col(name), found[name], wanted, name in IDS)
            if column is None:
                either = " or String" if name in IDS else ""
                faults.append(f"{name}: is {found[name]}, must be {_spell(wanted)}{either}")
            else:
                chosen.append(column)
    if faults:
        raise SchemaError(
            f"{len(faults)} column(s) do not fit the event schema (tasks/datasets/_schema.py); rename or cast them in "
            "the dataset's read():" + "".join(f"\n  {fault}" for fault in faults)
        )
    return frame.select(chosen)


def _cast(column: pl.Expr, found: pl.DataType, wanted, is_id: bool) -> pl.Expr | None:
    """The column as the wanted type, or None where only a guess could make it so."""
    if found == wanted or (is_id and found == pl.String):
        return column
    if found == pl.Null:
        return column.cast(wanted)
    if found in (pl.Categorical, pl.Enum) and (wanted == pl.String or is_id):
        return column.cast(pl.String)
    if isinstance(wanted, pl.Datetime):
        if not isinstance(found, pl.Datetime):
            return None
        aware = column.dt.replace_time_zone("UTC") if found.time_zone is None else column.dt.convert_time_zone("UTC")
        return aware.dt.cast_time_unit("us")
    if wanted.is_numeric() and found.is_integer() or wanted.is_float() and (found.is_float() or found.is_decimal()):
        return column.cast(wanted)
    return None


def _spell(wanted) -> str:
    return str(wanted() if isinstance(wanted, type) else wanted)
