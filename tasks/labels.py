"""Labels are declared, not coded: a task is three lines of YAML, checked when read and evaluated by Polars.

    offer_make: {given: "event_id = 'item_view'", positive: "event_id = 'offer_make'", within: session}

`given` chooses the rows on which the task is asked; `positive` says what makes such a row positive; `within` says where
to look for it: in the `row` itself, in later events of the same user and item in the same `session`, in later events of
the same `user` and item, or in those of a duration such as `7d` from the row's time on. SQL's three-valued logic holds:
a null is not true, so the row is not asked, or not positive.
An event counts at the row's own time and later, and only inside the row's own split: when a split closes, nothing after
it is known, so a training label never reads the validation period.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import polars as pl

__all__ = ["OneClass", "Task", "TaskError", "check_names", "find_leaks", "label", "read_tasks", "require_two_classes"]

NAME = re.compile(r"[a-z][a-z0-9_]*")
DURATION = re.compile(r"(?:\d+[wdhms])+")
UNITS = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}
KEYS = {"session": ["user", "session", "item"], "user": ["user", "item"]}
LEAKS = ("event_id", "sampled")  # what a row is must be asked, never told

TOKEN = re.compile(
    r"""(?P<space>\s+)|(?P<string>'(?:[^']|'')*')|(?P<quoted>"[^"]+")|(?P<number>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    |(?P<word>[^\W\d]\w*)|(?P<sign><=|>=|<>|!=|\|\||[-+*/%=<>(),])""",
    re.VERBOSE,
)
# Only what reads one row at a time: no subquery, table function, aggregate or window can be spelled with these words.
KEYWORDS = {"and", "or", "not", "is", "null", "in", "between", "like", "ilike", "true", "false"}
KEYWORDS |= {"case", "when", "then", "else", "end", "cast", "try_cast", "as"}
TYPES = {"bigint", "boolean", "date", "double", "float", "int", "integer", "real", "smallint", "text", "varchar"}
FUNCTIONS = {"abs", "ceil", "coalesce", "ends_with", "floor", "greatest", "ifnull", "least", "length", "lower", "ltrim"}
FUNCTIONS |= {"nullif", "round", "rtrim", "sign", "starts_with", "substr", "trim", "upper"}


class TaskError(ValueError):
    """A task is declared in a way that cannot work; nothing was computed."""


class OneClass(ValueError):
    """A label has one class only, so nothing can be learned or judged."""


@dataclass(frozen=True)
class Task:
    """One declared task; `Task.read` checks it, so an instance can be trusted."""

    name: str
    given: str
    positive: str
    within: str
    seen: Mapping[str, Mapping[str, int]] = field(default_factory=dict, compare=False)  # split -> event -> rows

    @classmethod
    def read(
        cls,
        name: str,
        declaration: Mapping[str, str],
        schema: Mapping[str, pl.DataType],
        features: Iterable[str],
        events: Iterable[str],
        log: Mapping[str, pl.DataType] | None = None,
        seen: Mapping[str, Mapping[str, int]] | None = None,
    ) -> "Task":
        """Check a declaration before anything is computed.

        Args:
            schema: columns of the row table, which `given` reads, and `positive` too when within is `row`.
            features: columns that the model reads.
            events: names that may stand in event_id.
            log: columns of the events, which `positive` reads otherwise; None means those of `schema`.
            seen: rows per event and split, for messages.

        Raises:
            TaskError: with every fault of the declaration at once.
        """
        _check_name(name)
        if not isinstance(declaration, Mapping):
            raise TaskError(f"task {name}: {declaration!r} is not a declaration; write {{given, positive, within}}")
        wanted, faults = ("given", "positive", "within"), []
        for key in declaration:
            if key not in wanted:
                faults.append(f"unknown key {key!r}{_closest(str(key), wanted)}; a task has given, positive and within")
        faults += [f"{key} is missing" for key in wanted if key not in declaration]
        faults += [
            f"{key} is {declaration[key]!r}, not a text; put it in quotes"
            for key in wanted
            if key in declaration and not isinstance(declaration[key], str)
        ]
        if not faults:
            within = declaration["within"]
            if within not in ("row", *KEYS) and not _duration(within):
                faults.append(f"within is {within!r}; it is row, session, user, or a duration such as 7d or 12h")
            log, features, events = schema if within == "row" or log is None else log, set(features), list(events)
            faults += _faults("given", declaration["given"], schema, events)
            found = _faults("positive", declaration["positive"], log, events)
            faults += found or _leaks(declaration["positive"], within, features)
        if faults:
            raise TaskError(f"task {name}: " + "; ".join(faults))
        return cls(name, declaration["given"], declaration["positive"], within, seen or {})

    @property
    def window(self) -> timedelta | None:
        """How far after a row its positive event may lie; None when `within` is no duration."""
        return _duration(self.within)


def read_tasks(declarations: Mapping[str, Mapping], ingest: str | Path, manifest: Mapping) -> list[Task]:
    """Check all declared tasks against the ingested events and the manifest of the features built from them.

    Raises:
        TaskError: naming every faulty task.
    """
    if not isinstance(declarations, Mapping) or not declarations:
        raise TaskError(f"no task is declared (found {declarations!r}); write `name: {{given, positive, within}}`")
    log = pl.scan_parquet(Path(ingest) / "events" / "**" / "*.parquet", hive_partitioning=False).collect_schema()
    schema = dict(log) | {name: getattr(pl, kind) for name, kind in manifest["added"].items()}
    features = [*manifest["categorical"], *manifest["numerical"]]
    tasks, faults = [], []
    for name, declaration in declarations.items():
        try:
            tasks.append(
                Task.read(name, declaration, schema, features, manifest["event_names"], log, manifest["events"])
            )
        except TaskError as error:
            faults.append(str(error))
    if faults:
        raise TaskError("\n  ".join(faults))
    return tasks


def check_names(base: Iterable[str], new: Iterable[str]) -> None:
    """Refuse names that are no names, and a new task that is called like one the backbone already learned.

    Raises:
        TaskError: naming all of them.
    """
    base, new, faults = list(base), list(new), []
    for name in [*base, *new]:
        try:
            _check_name(name)
        except TaskError as error:
            faults.append(str(error))
    if taken := [name for name in new if name in base]:
        faults.append(f"already tasks of the backbone: {', '.join(taken)}; give the new ones other names")
    if faults:
        raise TaskError("; ".join(faults))


def label(task: Task, rows: pl.DataFrame, events: pl.LazyFrame) -> np.ndarray:
    """What the model is to learn: (N,) int8, 1 positive, 0 negative, -1 where the task does not ask.

    Args:
        rows: N rows of the row table, in any order.
        events: the ingested events.

    Raises:
        TaskError: an expression fails on a value, as a cast of text to a number can.
    """
    try:
        asked = rows.select(_true(task.given)).to_series()
        if task.within == "row":
            positive = rows.select(_true(task.positive)).to_series()
        else:
            matching = events.filter(
                pl.sql_expr(task.positive) & pl.col("split").is_in(rows["split"].unique().to_list())
            )
            positive = _later(task, rows, matching)
    except pl.exceptions.PolarsError as error:
        raise TaskError(f"task {task.name}: {error}") from None
    return np.where(asked.to_numpy(), positive.to_numpy().astype(np.int8), np.int8(-1))


def require_two_classes(task: Task, split: str, label: np.ndarray) -> np.ndarray:
    """The label itself, when it has both classes.

    Raises:
        OneClass: names the task, the split, the counts and the events that were there.
    """
    positive, negative = int((label == 1).sum()), int((label == 0).sum())
    if positive and negative:
        return label
    seen = ", ".join(f"{event} {count}" for event, count in task.seen.get(split, {}).items()) or "not counted"
    raise OneClass(
        f"task {task.name} has one class in {split}: {positive} positive and {negative} negative rows, "
        f"{len(label) - positive - negative} not asked (given: {task.given}; positive: {task.positive}; within: "
        f"{task.within}). Events of {split}: {seen}. Declare it on events that occur, or give {split} more days"
    )


def find_leaks(
    train: tuple[np.ndarray, np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray, np.ndarray],
    names: list[str],
    threshold: float = 0.995,
    most: int = 200_000,
) -> list[tuple[str, float]]:
    """Features that alone tell the label: [(name, AUC)] with an AUC of at least `threshold`, the worst first.

    A number is judged by its AUC on train, in either direction. A categorical field is judged on val by the positive
    share of its value on train, shrunk by one row at the base rate; on train itself a field of distinct ids would
    always look perfect. Fewer than 5 positive or negative rows judge nothing: by chance one of them may rank first.

    Args:
        train, val: (categorical (N, F), numerical (N, M), label (N,)); rows with a negative label do not count.
        names: of the F categorical and then the M numerical features.
        most: rows of a class that are read, evenly spaced; an AUC does not depend on the classes' sizes.
    """
    train, val = _sample(train, most), _sample(val, most)
    if min(_smaller_class(train[2]), _smaller_class(val[2])) < 5:
        return []
    fields, found = train[0].shape[1], []
    prior = train[2].mean()
    for place, name in enumerate(names[:fields]):
        size = int(max(train[0][:, place].max(), val[0][:, place].max())) + 1
        rows = np.bincount(train[0][:, place], minlength=size)
        positive = np.bincount(train[0][:, place], weights=train[2], minlength=size)
        share = (positive + prior) / (rows + 1)
        found.append((name, _auc(share[val[0][:, place]], val[2])))
    for place, name in enumerate(names[fields:]):
        value = _auc(train[1][:, place], train[2])
        found.append((name, max(value, 1 - value)))
    return sorted(((n, v) for n, v in found if v >= threshold), key=lambda leak: (-leak[1], leak[0]))


def _check_name(name) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise TaskError(f"{name!r} is no task name: lower-case letters, digits and underscores, starting with a letter")


def _faults(key: str, text: str, schema: Mapping[str, pl.DataType], events: list[str]) -> list[str]:
    """What is wrong with one expression, or nothing."""
    try:
        tokens = _tokens(text)
        faults = _unknown(tokens, schema) + _unknown_events(tokens, events)
        if not faults:
            found = pl.DataFrame(schema=schema).lazy().select(pl.sql_expr(text)).collect()
            if (kind := found.dtypes[0]) != pl.Boolean:
                faults = [f"it gives {kind}, not true or false"]
    except (pl.exceptions.PolarsError, TaskError) as error:
        faults = [str(error).strip().splitlines()[0]]
    return [f"{key} `{text}`: {fault}" for fault in faults]


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each word of an expression; comments and statement ends are no words."""
    tokens, place = [], 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if not match or text.startswith("--", place) or text.startswith("/*", place):
            raise TaskError(f"cannot be read from {text[place : place + 20]!r} on")
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match.group()))
        place = match.end()
    if not tokens:
        raise TaskError("is empty")
    return tokens


def _unknown(tokens: list[tuple[str, str]], schema: Mapping[str, pl.DataType]) -> list[str]:
    faults = []
    for place, (kind, text) in enumerate(tokens):
        called = tokens[place + 1 : place + 2] == [("sign", "(")]
        if kind == "quoted" and text.strip('"') not in schema:
            faults.append(
                f"there is no column {text}; texts stand in single quotes{_closest(text.strip(chr(34)), schema)}"
            )
        elif kind == "word" and called and text.lower() not in KEYWORDS | TYPES | FUNCTIONS:
            faults.append(
                f"{text}() is not allowed here: an expression reads the columns of one row, with {_listed(FUNCTIONS)}"
            )
        elif kind == "word" and not called and text not in schema and text.lower() not in KEYWORDS | TYPES:
            faults.append(f"there is no column {text}{_closest(text, schema)}")
    return faults


def _unknown_events(tokens: list[tuple[str, str]], events: list[str]) -> list[str]:
    """Texts that are compared with event_id and are no event: such a label would silently be empty."""
    compared = []
    for place, token in enumerate(tokens):
        if token not in (("word", "event_id"), ("quoted", '"event_id"')):
            continue
        before, after = tokens[max(0, place - 2) : place], [t for t in tokens[place + 1 :] if t[1].lower() != "not"]
        if len(before) == 2 and before[1][1] in ("=", "<>", "!="):
            compared.append(before[0])
        if after and after[0][1] in ("=", "<>", "!="):
            compared += after[1:2]
        elif after and after[0][1].lower() == "in":
            compared += after[1 : next((i for i, t in enumerate(after) if t[1] == ")"), len(after))]
    names = [text[1:-1].replace("''", "'") for kind, text in compared if kind == "string"]
    return [f"there is no event {name!r}{_closest(name, events)}" for name in names if name not in events]


def _leaks(positive: str, within: str, features: set[str]) -> list[str]:
    used = {text.strip('"') for kind, text in _tokens(positive) if kind in ("word", "quoted")}
    leaked = sorted(features & (set(LEAKS) | (used if within == "row" else set())))
    if not leaked:
        return []
    read = ", ".join(leaked)
    return [f"positive `{positive}`: it leaks, because the model reads {read}; take it out of recommend.features"]


def _true(text: str) -> pl.Expr:
    return pl.sql_expr(text).fill_null(False).alias("true")


def _later(task: Task, rows: pl.DataFrame, matching: pl.LazyFrame) -> pl.Series:
    """Whether a matching event of the same key follows each row, at its time or later."""
    keys = [*KEYS.get(task.within, KEYS["user"]), "split"]
    wanted = rows.lazy().select(*keys, "stime")
    if task.window is None:
        last = matching.group_by(keys).agg(last=pl.col("stime").max())
        joined = wanted.join(last, on=keys, how="left", maintain_order="left")
        return (
            joined.select((pl.col("last") >= pl.col("stime")).fill_null(False)).collect(engine="streaming").to_series()
        )
    times = matching.select(*keys, "stime", pl.col("stime").alias("next")).sort("stime")
    joined = (
        wanted.with_row_index("place")
        .sort("stime")
        .join_asof(times, on="stime", by=keys, strategy="forward", check_sortedness=False)
        .sort("place")
    )
    reached = pl.col("next") - pl.col("stime") <= task.window
    return joined.select(reached.fill_null(False)).collect().to_series()


def _duration(text: str) -> timedelta | None:
    if not isinstance(text, str) or not DURATION.fullmatch(text):
        return None
    parts = re.findall(r"(\d+)([wdhms])", text)
    return sum((timedelta(**{UNITS[unit]: int(count)}) for count, unit in parts), timedelta()) or None


def _sample(side: tuple[np.ndarray, np.ndarray, np.ndarray], most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    label, chosen = np.asarray(side[2]), []
    for value in (0, 1):
        of_class = np.flatnonzero(label == value)
        chosen.append(of_class[:: max(1, -(-len(of_class) // most))])
    rows = np.sort(np.concatenate(chosen))
    return side[0][rows], side[1][rows], label[rows].astype(np.int64)


def _smaller_class(label: np.ndarray) -> int:
    return int(min((label == 0).sum(), (label == 1).sum()))


def _auc(score: np.ndarray, label: np.ndarray) -> float:
    """Probability that a positive row scores above a negative one, a tie counting half (Mann-Whitney)."""
    _, value = np.unique(score, return_inverse=True)
    positive = np.bincount(value, weights=label)
    negative = np.bincount(value, weights=1 - label)
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def _closest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)[:10]
    return f" (closest: {', '.join(close)})"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(sorted(words))
