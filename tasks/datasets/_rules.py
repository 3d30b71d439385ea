"""What must hold in a log: each rule is one number that Polars counts and a band that Great Expectations judges.

A rule over rows is an aggregate: all of them are counted in one streaming scan. A rule over groups (one name per id, no
duplicate keys) needs a group-by of its own, which `tasks.validate` runs bucket by bucket so that memory stays bounded.
A null never breaks a rule about values; say `not_null` where a value must be there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import polars as pl

__all__ = [
    "Groups",
    "Rule",
    "at_least_rows",
    "at_most_per_user",
    "between",
    "distinct_key",
    "finite",
    "implies",
    "in_set",
    "inside_month",
    "never",
    "not_null",
    "null_rate",
    "one_name_per_id",
    "present",
    "share",
    "whole_sequences",
]


@dataclass(frozen=True, eq=False)
class Groups:
    """A rule over groups of rows: the number is the sum of `broken` over all groups."""

    keys: tuple[str, ...]  # rows with equal keys are one group; rows with a null key are in none, unless `null_keys`
    broken: pl.Expr  # aggregate inside a group: how many faults it holds, 0 or False when none
    per_row: bool = False  # divide the sum by the number of rows: a rate, which may be estimated from some groups
    null_keys: bool = False


@dataclass(frozen=True, eq=False)
class Rule:
    """One number about a log and the band [low, high] it must lie in; None leaves a side open.

    Exactly one of `measure` and `groups` says how to get the number.
    """

    name: str  # unique in a list of rules; names the column of the profile
    text: str  # for people: what must hold
    columns: tuple[str, ...]  # what it reads; where one is absent the rule does not apply, and the report says so
    measure: pl.Expr | None = None  # aggregate over all rows
    groups: Groups | None = None
    low: float | None = None
    high: float | None = 0
    offending: pl.Expr | None = None  # the rows to show when a rule over rows is broken
    warning: bool = False  # reported with examples, refuses nothing
    required: bool = False  # an absent column is a violation, not "does not apply"

    @property
    def counts_violations(self) -> bool:
        """Whether the number must be 0, rather than lie in a range."""
        return self.low is None and self.high == 0

    def as_warning(self) -> "Rule":
        """The same rule, reported but refusing nothing."""
        return replace(self, warning=True)


def never(name: str, text: str, offending: pl.Expr, *columns: str) -> Rule:
    """No row is `offending`, an expression over `columns`; what the builders below cannot say."""
    return Rule(name, text, columns, measure=offending.sum(), offending=offending)


def in_set(column: str, values: Iterable) -> Rule:
    """Every value that is there is one of `values`."""
    allowed = list(values)
    return never(f"{column} in set", f"{column} is one of {_listed(allowed)}", ~pl.col(column).is_in(allowed), column)


def between(column: str, low: float, high: float) -> Rule:
    """Every value that is there lies in [low, high]; NaN and infinity do not."""
    return never(
        f"{column} between {low} and {high}",
        f"{column} lies between {low} and {high}",
        ~pl.col(column).is_between(low, high),  # Polars orders NaN above every number, so `high` refuses it
        column,
    )


def finite(column: str) -> Rule:
    """No value is NaN or infinite: Parquet keeps both apart from null."""
    return never(f"{column} finite", f"{column} is neither NaN nor infinite", ~pl.col(column).is_finite(), column)


def not_null(column: str) -> Rule:
    """Every row has a value."""
    return never(f"{column} not null", f"{column} is never null", pl.col(column).is_null(), column)


def implies(a: str, b: str) -> Rule:
    """A row that has `a` has `b`: a category of level 2 has its parent of level 1."""
    offending = pl.col(a).is_not_null() & pl.col(b).is_null()
    return never(f"{a} implies {b}", f"a row that has {a} has {b}", offending, a, b)


def present(*columns: str) -> Rule:
    """The columns are in the log: without this, rules about an absent column do not apply."""
    name = f"present: {', '.join(columns)}"
    return Rule(name, f"the log has {_listed(columns)}", columns, measure=pl.lit(0), required=True)


def null_rate(column: str, expected: float, tolerance: float) -> Rule:
    """The share of nulls lies within `tolerance` of `expected`, both fractions of 1."""
    return Rule(
        name=f"{column} null rate",
        text=f"{100 * expected:.4g} % (± {100 * tolerance:.4g} points) of {column} is null",
        columns=(column,),
        measure=pl.col(column).is_null().mean(),
        low=max(0.0, expected - tolerance),
        high=min(1.0, expected + tolerance),
    )


def share(column: str, value, expected: float, relative: float) -> Rule:
    """The share of rows with `value`, a fraction of 1, lies within `relative` (0.05 means 5 %) of `expected`."""
    return Rule(
        name=f"{column} share of {value}",
        text=f"{100 * expected:.4g} % (± {100 * relative:.4g} % of it) of the rows have {column} {value}",
        columns=(column,),
        measure=(pl.col(column) == value).sum() / pl.len(),
        low=expected * (1 - relative),
        high=expected * (1 + relative),
    )


def at_least_rows(n: int) -> Rule:
    """The log has n rows or more."""
    return Rule(f"at least {n} rows", f"the log has {n} rows or more", (), measure=pl.len(), low=n, high=None)


def inside_month(column: str, *months: str) -> Rule:
    """All times lie in the given calendar months ("2023-05", UTC); without any, in one calendar month, whichever.

    One folder of MerRec is one month in UTC.
    """
    time = pl.col(column)
    if months:
        outside = ~time.dt.strftime("%Y-%m").is_in(list(months))
        return never(f"{column} inside month", f"{column} lies in {_listed(months)}", outside, column)
    month = time.dt.year().cast(pl.Int32) * 12 + time.dt.month()
    return Rule(
        name=f"{column} inside month",
        text=f"{column} lies in one calendar month; the number is how many further months its span touches",
        columns=(column,),
        measure=month.max() - month.min(),
        offending=time.dt.truncate("1mo") != time.mean().dt.truncate("1mo"),  # the mean lies where the bulk is
    )


def one_name_per_id(id: str, name: str) -> Rule:
    """No id has two names; rows without the id or the name do not count."""
    broken = pl.col(name).min() != pl.col(name).max()  # two numbers a group: n_unique would keep every name
    return Rule(
        name=f"one {name} per {id}",
        text=f"each {id} has one {name}; the number is how many ids have several",
        columns=(id, name),
        groups=Groups((id,), broken),
    )


def distinct_key(columns: Iterable[str], most: float = 0.002) -> Rule:
    """Rows that repeat the key of an earlier row are at most the fraction `most` of all rows; null equals null.

    MerRec of May 2023 has 0.084 % of them.
    """
    keys = tuple(columns)
    return Rule(
        name=f"duplicates of ({', '.join(keys)})",
        text=f"at most {100 * most:.4g} % of the rows repeat the ({', '.join(keys)}) of another",
        columns=keys,
        groups=Groups(keys, pl.len().cast(pl.Int64) - 1, per_row=True, null_keys=True),
        high=most,
    )


def whole_sequences(user: str = "user_id", sequence: str = "sequence_id", length: str = "sequence_length") -> Rule:
    """The stated length of a sequence is its number of rows.

    Holds where shards are whole: a log cut by rows, not by users, breaks sequences at its cuts. A sequence is the pair
    (user, sequence): sequence ids alone are not unique.
    """
    stated = pl.col(length)
    broken = (stated.min() != pl.len()) | (stated.max() != pl.len())
    return Rule(
        name="whole sequences",
        text=f"{length} is the number of rows of ({user}, {sequence}); the number is how many sequences differ",
        columns=(user, sequence, length),
        groups=Groups((user, sequence), broken),
    )


def at_most_per_user(n: int, user: str = "user_id", *, refuse: bool = False) -> Rule:
    """Users with more than n rows are named: likely bots. A warning, because a heavy user may be real; see `refuse`."""
    return Rule(
        name=f"at most {n} rows per {user}",
        text=f"no {user} has more than {n} rows (likely a bot); the number is how many have",
        columns=(user,),
        groups=Groups((user,), pl.len() > n),
        warning=not refuse,
    )


def _listed(values: Iterable) -> str:
    """The first ten values: a vocabulary of thousands would bury the message."""
    values = list(values)
    return ", ".join(map(str, values[:10])) + (f" and {len(values) - 10} more" if len(values) > 10 else "")
