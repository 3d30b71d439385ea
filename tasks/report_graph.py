"""The graph of a report: which stages ran, which were fresh, and what each took in seconds and memory.

What there is comes from dvc.lock and data.dvc; what ran, and what it took, from the checkout's journal
(tasks/journal.py). A stage whose result came from DVC's cache, or from another machine, has no seconds here.
"""

import shlex
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from tasks.journal import Entry, entries
from tasks.page import folded
from tasks.settings import read

__all__ = ["Stage", "costs", "graph", "last_run", "moment", "stages"]

STATES = {"failed": "failed", "ran": "ran in this run", "stale": "stale", "fresh": "fresh", "built": "built before"}
NODE, GAP, ROW, ACROSS = (146, 40), 12, 66, 6  # a node's size, its distance, a row's height, nodes in a row
MANY = 3  # a box that needs nothing and feeds more than so many says so, instead of lines over all others
SHOWN, MOST = 12, 200  # lines of the table that are seen at once, and in all
LONG = 60  # characters of a command


@dataclass(frozen=True)
class Stage:
    """One stage that left its results in this checkout."""

    name: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    state: str  # a key of STATES
    started: float | None = None  # when it last ran here, seconds since 1970
    seconds: float | None = None
    peak_memory_mb: float | None = None
    needs: set[str] = field(default_factory=set)  # stages that make what it reads

    @property
    def family(self) -> str:
        return self.name.partition("@")[0]


def last_run(journal: Path) -> float | None:
    """When the newest run began: the first start of a work unit in it."""
    found = entries(journal)
    return min(entry.started for entry in found if entry.run == found[-1].run) if found else None


def stages(
    root: Path, journal: Path, since: float | None, stale: Collection[str] | None
) -> tuple[list[Stage], list[str]]:
    """The stages of the checkout `root` that ran or have results here, each after what it needs; and all others' names.

    Args:
        journal: folder of tasks/journal.py.
        since: what started later ran in this run.
        stale: what DVC calls stale; None: nobody asked it.
    """
    took = {(entry.unit, entry.words): entry for entry in entries(journal)}  # the last of each
    begun = lambda entry: since is not None and entry.started >= since
    found, absent = [], []
    for name, told in _locked(root).items():
        outs = tuple(out["path"] for out in told.get("outs") or ())
        runs = [took.pop(command) for command in _commands(told.get("cmd") or ()) if command in took]
        now, whole = [entry for entry in runs if begun(entry)], all((root / out).exists() for out in outs)
        if not now and not whole:
            absent.append(name)
            continue
        # Without an end and without results it was killed; without an end and with results it is from an older release.
        failed = any(entry.failed or (entry.seconds is None and not whole) for entry in now)
        known = "built" if stale is None else "stale" if name in stale else "fresh"
        deps = tuple(dep["path"] for dep in told.get("deps") or ())
        found.append(Stage(name, deps, outs, "failed" if failed else "ran" if now else known, *_cost(runs)))
    # What never succeeded has no place in dvc.lock: its command stands for it.
    found += [Stage(" ".join([entry.unit, *entry.words])[:LONG], (), (), "failed", *_cost([entry]))
              for entry in took.values() if begun(entry) and entry.failed]  # fmt: skip
    return _ordered(found), sorted(absent)


def _locked(root: Path) -> dict[str, dict]:
    there = {file.name: read(str(file)) for file in sorted(root.glob("*.dvc")) if file.is_file()}
    lock = root / "dvc.lock"
    return there | ((read(str(lock)).get("stages") or {}) if lock.is_file() else {})


def _commands(told: str | Sequence[str]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """(unit, words) as the journal knows them, of `python -m tasks.unit words`."""
    for command in [told] if isinstance(told, str) else told:
        words = shlex.split(command)
        if "-m" in words[:-1]:
            place = words.index("-m") + 1
            yield words[place].rpartition(".")[2], tuple(words[place + 1 :])


def _cost(runs: Sequence[Entry]) -> tuple[float | None, float | None, float | None]:
    """When a stage began, how long its commands took together, and the most that one of them held."""
    if not runs or any(entry.seconds is None for entry in runs):
        return min((entry.started for entry in runs), default=None), None, None
    return (min(entry.started for entry in runs), sum(entry.seconds for entry in runs),
            max(entry.peak_memory_mb for entry in runs))  # fmt: skip


def _ordered(found: list[Stage]) -> list[Stage]:
    for stage in found:
        stage.needs.update(other.name for other in found if other is not stage and _feeds(other, stage))
    order, left = [], {stage.name: stage for stage in found}
    while left:
        ready = [name for name, stage in left.items() if not stage.needs & left.keys()] or [next(iter(left))]
        order += [left.pop(name) for name in sorted(ready)]
    return order


def _feeds(giver: Stage, taker: Stage) -> bool:
    inside = lambda path, folder: path == folder or path.startswith(folder.rstrip("/") + "/")
    return any(inside(dep, out) or inside(out, dep) for dep in taker.deps for out in giver.outs)


def graph(found: Sequence[Stage]) -> str:
    """SVG: a box for each kind of stage, from top to bottom, and a line from what makes to what needs it.

    Args:
        found: as `stages` orders them.
    """
    layer: dict[str, int] = {}
    for stage in found:
        layer[stage.name] = max((layer.get(name, -1) for name in stage.needs), default=-1) + 1
    families, needs, row = defaultdict(list), defaultdict(set), {}
    kind = {stage.name: stage.family for stage in found}
    for stage in found:
        families[stage.family].append(stage)
        needs[stage.family] |= {kind[name] for name in stage.needs} - {stage.family}
        row[stage.family] = min(row.get(stage.family, layer[stage.name]), layer[stage.name])
    needs = _shortest(needs, row)
    feeds = {name: sum(name in givers for givers in needs.values()) for name in row}
    common = {name for name in row if not needs[name] and feeds[name] > MANY}
    needs = {name: givers - common for name, givers in needs.items()}
    place, width, high = _places(row, needs)
    drawn = [_edge(place[giver], place[taker]) for taker in families for giver in sorted(needs[taker])]
    drawn += [_node(name, members, feeds[name] * (name in common), *place[name]) for name, members in families.items()]
    counts = ", ".join(f"{sum(stage.state == state for stage in found)} {words}" for state, words in STATES.items()
                       if any(stage.state == state for stage in found))  # fmt: skip
    return (f"<svg role=img aria-label='The graph of {len(found)} stages: {counts}. The table below lists each.' "
            f"viewBox='0 0 {width} {high}' style='width:{width}px;max-width:none'>{''.join(drawn)}</svg>")  # fmt: skip


def _shortest(needs: dict[str, set[str]], row: dict[str, int]) -> dict[str, set[str]]:
    """Without the lines that a longer way says already."""

    def above(name: str, seen: set[str]) -> set[str]:
        for giver in needs[name]:
            if giver not in seen and row[giver] < row[name]:
                seen.add(giver)
                above(giver, seen)
        return seen

    reached = {name: above(name, set()) for name in row}
    return {name: {giver for giver in needs[name]
                   if not any(giver in reached[other] for other in needs[name] if row[other] < row[name])}
            for name in row}  # fmt: skip


def _places(row: dict[str, int], needs: dict[str, set[str]]) -> tuple[dict[str, tuple[float, float]], float, float]:
    """The middle of each box below the middle of what it needs, rows of at most ACROSS boxes; width and height."""
    rows = defaultdict(list)
    for name, number in row.items():
        rows[number].append(name)
    widest = min(ACROSS, max(map(len, rows.values()), default=1))
    width, place, line = widest * (NODE[0] + GAP), {}, 0
    for number in sorted(rows):
        mean = lambda name: sum(place[giver][0] for giver in needs[name] if giver in place) / max(
            sum(giver in place for giver in needs[name]), 1)  # fmt: skip
        members = sorted(rows[number], key=lambda name: (mean(name), name))
        for start in range(0, len(members), ACROSS):
            some = members[start : start + ACROSS]
            step = width / len(some)
            for index, name in enumerate(some):
                place[name] = (step * (index + 0.5), line * ROW + NODE[1] / 2 + 4)
            line += 1
    return place, width, line * ROW - ROW + NODE[1] + 8 if line else 0


def _edge(giver: tuple[float, float], taker: tuple[float, float]) -> str:
    (x, y), (a, b) = giver, taker
    y, b = y + NODE[1] / 2, b - NODE[1] / 2
    bend = max(abs(b - y) / 2, 14)
    return f"<path class=axis d='M{x:.0f},{y:.0f} C{x:.0f},{y + bend:.0f} {a:.0f},{b - bend:.0f} {a:.0f},{b:.0f}'/>"


def _node(name: str, members: Sequence[Stage], feeds: int, x: float, y: float) -> str:
    count = {state: sum(stage.state == state for stage in members) for state in STATES}
    worst = next(state for state in STATES if count[state])
    told = ", ".join(f"{many} {state}" for state, many in count.items() if many) if len(members) > 1 else worst
    told += f", feeds {feeds} kinds" if feeds else ""
    left, top = x - NODE[0] / 2, y - NODE[1] / 2
    return (f"<g class='node {worst}'><rect x={left:.0f} y={top:.0f} width={NODE[0]} height={NODE[1]} rx=7 />"
            f"<text x={x:.0f} y={y - 3:.0f} text-anchor=middle>{escape(name)}</text>"
            f"<text class=dim x={x:.0f} y={y + 12:.0f} text-anchor=middle>{escape(told)}</text></g>")  # fmt: skip


def costs(found: Sequence[Stage]) -> str:
    """A table of what each stage took when it last ran here, the longest first."""
    order = sorted(found, key=lambda stage: (-(stage.seconds or 0), stage.name))
    most = max((stage.seconds or 0 for stage in found), default=0) or 1
    rows = [[escape(stage.name), _mark(stage.state), moment(stage.started),
             f"{stage.seconds:.1f}" if stage.seconds is not None else "-",
             f"<i class=bar style='width:{100 * stage.seconds / most:.0f}%'></i>" if stage.seconds else "",
             f"{stage.peak_memory_mb:.0f}" if stage.peak_memory_mb is not None else "-"]
            for stage in order]  # fmt: skip
    return folded(["stage", "state", "last ran, UTC", "seconds", "", "peak MB"], rows, SHOWN, MOST)


def _mark(state: str) -> str:
    colour = {"failed": "bad", "ran": "good", "stale": "bad"}.get(state, "dim")
    return f"<span class={colour}>{STATES[state]}</span>"


def moment(seconds: float | None) -> str:
    """2026-11-21 21:47 of seconds since 1970, or - for None."""
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
