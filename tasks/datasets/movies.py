"""MovieLens with plots: ratings as purchases, descriptions, days of release.

Expects movies.parquet with movieId, title, genres, overview, release_date, and ratings.parquet with userId, movieId,
rating, timestamp (seconds since 1970), as in ml-latest-small joined with TMDB's overviews. Somebody who rates a movie
has seen it: that is the purchase, whatever the rating (as in arXiv:1803.00202, which has binary purchases only; a
reader who wants liked movies filters by `rating`). Movies without a description or a day of release are left out and
counted. MovieLens licence: research use.
"""

from pathlib import Path

import polars as pl

from tasks.datasets._rules import Rule, at_least_rows, at_most_per_user, between, distinct_key, in_set, not_null
from tasks.datasets._schema import REQUIRED, conform

__all__ = ["EVENTS", "FEATURES", "expectations", "left_out", "read"]

EVENTS = ("buy_comp",)
OWN = {"overview": pl.String, "genres": pl.String, "release_date": pl.Date, "rating": pl.Float64}
FEATURES = {
    "categorical": ["user_id", "item_id", "hour", "weekday"],
    "numerical": ["session_position", "seconds_since_previous", "user_events_before", "item_events_before"],
    "history": {"item_id": 3},
}


def read(raw: Path) -> pl.LazyFrame:
    """The ratings of described movies in the event schema, with the columns of OWN."""
    movies = _movies(raw).filter(_described())
    frame = (
        pl.scan_parquet(raw / "ratings.parquet")
        .join(movies, on="movieId", how="inner")
        .select(
            user_id=pl.col("userId").cast(pl.Int64),
            stime=pl.from_epoch("timestamp", time_unit="s"),
            event_id=pl.lit("buy_comp"),
            item_id=pl.col("movieId").cast(pl.Int64),
            name="title",
            overview="overview",
            genres="genres",
            release_date="release_date",
            rating="rating",
        )
    )
    return conform(frame, own=OWN)


def left_out(raw: Path) -> dict[str, int]:
    """What read() leaves out."""
    ratings = pl.scan_parquet(raw / "ratings.parquet").join(_movies(raw), on="movieId", how="left")
    missing = ratings.select((~_described()).fill_null(True).sum())
    return {"ratings of movies without a description or a day of release": missing.collect().item()}


def expectations() -> list[Rule]:
    """A user rates a movie once, from half a star to five; nobody rated before MovieLens began, in 1995."""
    return [
        at_least_rows(1),
        *map(not_null, (*REQUIRED, "name", "overview", "release_date")),
        in_set("event_id", EVENTS),
        between("rating", 0.5, 5),
        distinct_key(("user_id", "item_id")),
        at_most_per_user(10_000),
    ]


def _movies(raw: Path) -> pl.LazyFrame:
    return pl.scan_parquet(raw / "movies.parquet").select("movieId", "title", "genres", "overview", "release_date")


def _described() -> pl.Expr:
    return (pl.col("overview").str.strip_chars() != "") & pl.col("release_date").is_not_null()
