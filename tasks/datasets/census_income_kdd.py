"""UCI Census-Income (KDD): one person a row, the two-task benchmark of MMoE (income over 50,000; never married).

Expects *.parquet with the forty named columns of the survey, instance_weight and income_50k ("- 50000." or
"50000+."). A person is a user with one event, `row`, and the same one item. The survey has no order in time, so each
row gets a moment of January 2000 by a fixed step modulo a prime: a split by time is then an even draw over the file,
the same in every run.

Labels are columns: income_50k and never_married, 0 or 1, and the raw education. Features are all others but three:
education (it is a label of MMoE's first pair), marital_stat (it is the second label), and instance_weight (it tells
how many people a row stands for). Household columns that hint at a marriage stay, as in Ma et al., 2018,
doi:10.1145/3219819.3220007. "?" means missing. Licence CC BY 4.0 (UCI).
"""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from tasks.datasets._rules import Rule, between, in_set, not_null, share
from tasks.datasets._schema import REQUIRED, conform

__all__ = ["EVENTS", "FEATURES", "expectations", "read"]

EVENTS = ("row",)
NUMBERS = ("age", "wage_per_hour", "capital_gains", "capital_losses", "stock_dividends", "num_emp", "weeks_worked")
CODES = ("det_ind_code", "det_occ_code", "own_or_self", "vet_benefits", "year")  # numbers that are names
WORDS = (
    *("class_worker", "hs_college", "major_ind_code", "major_occ_code", "race", "hisp_origin", "sex", "union_member"),
    *("unemp_reason", "full_or_part_emp", "tax_filer_stat", "region_prev_res", "state_prev_res", "det_hh_fam_stat"),
    *("det_hh_summ", "mig_chg_msa", "mig_chg_reg", "mig_move_reg", "mig_same", "mig_prev_sunbelt", "fam_under_18"),
    *("country_father", "country_mother", "country_self", "citizenship", "vet_question"),
)
FEATURES = {"categorical": [*CODES, *WORDS], "numerical": [*NUMBERS], "history": {}}

PRIME = 2**31 - 1  # milliseconds: 24.8 days; times of fewer rows than this are all different
STEP = 1_327_217_885  # the prime over the golden ratio: neighbouring rows fall far apart, every stretch of rows evenly


def read(raw: Path) -> pl.LazyFrame:
    """The survey in the event schema, its columns and labels beside it."""
    moment = (pl.col("user_id") * STEP % PRIME * 1000).cast(pl.Duration("us"))
    words = [pl.col(name).replace("?", None) for name in (*WORDS, "education", "marital_stat")]
    frame = (
        pl.scan_parquet(raw / "*.parquet", row_index_name="user_id", row_index_offset=1)
        .with_columns(pl.col("user_id").cast(pl.Int64))
        .select(
            "user_id",
            *NUMBERS,
            *CODES,
            *words,
            item_id=pl.lit(1, dtype=pl.Int64),
            event_id=pl.lit("row"),
            stime=pl.lit(datetime(2000, 1, 1, tzinfo=UTC)) + moment,
            income_50k=(pl.col("income_50k") == "50000+.").cast(pl.Int64),
            never_married=(pl.col("marital_stat") == "Never married").cast(pl.Int64),
        )
    )
    numbers = dict.fromkeys((*NUMBERS, *CODES, "income_50k", "never_married"), pl.Int64)
    return conform(frame, own=numbers | dict.fromkeys((*WORDS, "education", "marital_stat"), pl.String))


def expectations() -> list[Rule]:
    """Plausible people, in the proportions of the survey."""
    return [
        *map(not_null, (*REQUIRED, *NUMBERS, *CODES, "education", "marital_stat", "income_50k", "never_married")),
        in_set("year", (94, 95)),
        between("age", 0, 120),
        between("weeks_worked", 0, 52),
        between("wage_per_hour", 0, 9999),
        share("income_50k", 1, 0.062, 0.25),
        share("never_married", 1, 0.4325, 0.1),
    ]
