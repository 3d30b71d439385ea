"""Pictures of the report, as SVG in the page: they follow its colours, light or dark, and each says what it shows."""

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["STYLE", "forest", "legend", "lines", "reliability"]

# Okabe and Ito's colours, distinct for colour-blind readers; the first four darker on paper and lighter on black.
STYLE = """
:root { --s0: #0a6cb0; --s1: #c25400; --s2: #00805c; --s3: #a8578a; --s4: #8f6400; --s5: #3f7fa8; --axis: #8888 }
@media (prefers-color-scheme: dark) { :root { --s0: #6bb7f0; --s1: #ff9d57; --s2: #4cc795; --s3: #e29cc8;
  --s4: #e8b64c; --s5: #8fd0f2 } }
svg { display: block; width: 100%; height: auto }
svg text { fill: var(--ink); font: 11px system-ui, sans-serif; paint-order: stroke; stroke: var(--paper);
  stroke-width: 3px } svg .dim { fill: var(--dim) }
svg .axis { stroke: var(--axis); fill: none } svg .need { stroke: var(--bad); stroke-dasharray: 4 3; fill: none }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round }
""" + "".join(f".k{i} {{ stroke: var(--s{i}); fill: var(--s{i}) }}\n.t{i} {{ color: var(--s{i}) }}\n" for i in range(6))
COLOURS = 6
WIDE, HIGH = 320, 190  # of a picture, in units that are pixels on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 34
POINTS = 60  # of a line: more than a picture of this size shows


def lines(said: str, series: Mapping[str, Sequence[tuple[float, float]]], x: str) -> str:
    """Name -> points (x, y) in order of x; what is not finite leaves a gap of its point."""
    series = {name: _thinned([p for p in points if all(map(math.isfinite, p))]) for name, points in series.items()}
    known = [point for points in series.values() for point in points]
    if not known:
        return ""
    across, up = _scale([p[0] for p in known], LEFT, WIDE - RIGHT), _scale([p[1] for p in known], HIGH - BOTTOM, TOP)
    parts = [_axes(across, up, x)]
    for index, points in enumerate(series.values()):
        placed = [(across.at(a), up.at(b)) for a, b in points]
        if len(placed) > 1:
            joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
            parts.append(f"<polyline class='line k{index % COLOURS}' style='fill:none' points='{joined}'/>")
        parts += [f"<circle class=k{index % COLOURS} cx={a:.1f} cy={b:.1f} r=2.2 />" for a, b in placed[-1:]]
    told = [f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in series.items() if points]
    return _svg(f"{said}: {'; '.join(told)}", "".join(parts))


def reliability(said: str, bins: Mapping[str, Sequence[tuple[float, float, float]]]) -> str:
    """Name -> (mean prediction, share of positives, rows) of each bin, on logarithmic axes; empty bins are left out.

    A bin without any positive lies on the lower edge.
    """
    bins = {name: [part for part in parts if part[2] > 0] for name, parts in bins.items()}
    positive = [value for parts in bins.values() for part in parts for value in part[:2] if value > 0]
    if not positive:
        return ""
    low = 10 ** math.floor(math.log10(min(positive)))
    most = max(part[2] for parts in bins.values() for part in parts)
    decades = [10.0**n for n in range(round(math.log10(low)), 1)]
    across, up = (_Log(low, start, end, decades) for start, end in ((LEFT, WIDE - RIGHT), (WIDE - BOTTOM, TOP)))
    drawn = [_axes(across, up, "mean predicted probability", WIDE)]
    drawn.append(f"<path class=need d='M{across.at(low):.1f},{up.at(low):.1f} L{across.at(1):.1f},{up.at(1):.1f}'/>")
    for index, parts in enumerate(bins.values()):
        placed = [(across.at(max(p, low)), up.at(max(o, low)), rows) for p, o, rows in parts]
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b, _ in placed)
        drawn.append(f"<polyline class='line k{index % COLOURS}' style='fill:none' opacity=.4 points='{joined}'/>")
        drawn += [f"<circle class=k{index % COLOURS} cx={a:.1f} cy={b:.1f} r={2 + 4 * math.sqrt(n / most):.1f} />"
                  for a, b, n in placed]  # fmt: skip
    total = lambda parts: sum(part[2] for part in parts)
    told = [f"{name}: on {total(parts):.0f} rows {sum(p * n for p, _, n in parts) / total(parts):.3g} predicted on "
            f"average, {sum(o * n for _, o, n in parts) / total(parts):.3g} observed"
            for name, parts in bins.items() if parts]  # fmt: skip
    return _svg(f"{said}: {'; '.join(told)}", "".join(drawn), WIDE)


def forest(said: str, intervals: Mapping[str, tuple[float, float, float]], margin: float, x: str) -> str:
    """Name -> (low, estimate, high), with a line at no difference and one at what is needed."""
    values = [value for interval in intervals.values() for value in interval] + [0.0, margin]
    high = TOP + 26 * len(intervals) + BOTTOM
    across = _scale(values, 12, WIDE - 12)
    rows = [f"<path class=axis d='M{across.at(0):.1f},{TOP} V{high - BOTTOM}'/>",
            f"<path class=need d='M{across.at(margin):.1f},{TOP} V{high - BOTTOM}'/>"]  # fmt: skip
    for place, (name, (low, middle, top)) in enumerate(intervals.items()):
        y, k = TOP + 26 * place + 18, 2 if low >= margin else 1
        rows.append(f"<text x=12 y={y - 6}>{escape(name)}</text>"
                    f"<path class=k{k} stroke-width=2 d='M{across.at(low):.1f},{y} H{across.at(top):.1f}'/>"
                    f"<circle class=k{k} cx={across.at(middle):.1f} cy={y} r=4 />")  # fmt: skip
    rows += [f"<text x={across.at(tick):.1f} y={high - BOTTOM + 14} text-anchor=middle>{_short(tick)}</text>"
             for tick in across.ticks]  # fmt: skip
    rows.append(f"<text class=dim x={WIDE / 2} y={high - 4} text-anchor=middle>{escape(x)}</text>")
    told = [f"{name} {middle:+.4f}, {low:+.4f} to {top:+.4f}" for name, (low, middle, top) in intervals.items()]
    return _svg(f"{said}: {'; '.join(told)}; needed {margin:+.4g}", "".join(rows), high)


def legend(names: Sequence[str]) -> str:
    """The names of a picture's lines, each in its colour."""
    return " ".join(f"<span><b class=t{i % COLOURS} aria-hidden=true>&#9679;</b> {escape(name)}</span>"
                    for i, name in enumerate(names))  # fmt: skip


class _Linear:
    def __init__(self, low: float, high: float, start: float, end: float, ticks: Sequence[float]):
        self.low, self.high, self.start, self.end, self.ticks = low, high, start, end, ticks

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


class _Log(_Linear):
    """From `low` to 1."""

    def __init__(self, low: float, start: float, end: float, ticks: Sequence[float]):
        super().__init__(math.log10(low), 0.0, start, end, ticks)

    def at(self, value: float) -> float:
        return super().at(math.log10(value))


def _scale(values: Sequence[float], start: float, end: float) -> _Linear:
    """Of all values, with a few round ticks."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    rough = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * times for times in (1, 2, 2.5, 5, 10) if unit * times >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return _Linear(low, high, start, end, [step * number for number in range(first, last + 1)])


def _axes(across: _Linear, up: _Linear, x: str, high: float = HIGH) -> str:
    floor = high - BOTTOM
    parts = [f"<path class=axis d='M{LEFT},{TOP} V{floor} H{WIDE - RIGHT}'/>"]
    parts += [f"<path class=axis opacity=.4 d='M{LEFT},{up.at(tick):.1f} H{WIDE - RIGHT}'/>"
              f"<text x={LEFT - 5} y={up.at(tick) + 4:.1f} text-anchor=end>{_short(tick)}</text>"
              for tick in up.ticks]  # fmt: skip
    parts += [f"<text x={across.at(tick):.1f} y={floor + 14} text-anchor=middle>{_short(tick)}</text>"
              for tick in across.ticks]  # fmt: skip
    return "".join(parts) + f"<text class=dim x={(LEFT + WIDE) / 2} y={high - 4} text-anchor=middle>{escape(x)}</text>"


def _short(value: float) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}" if abs(value) >= 1e-9 else "0"


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most POINTS of them, evenly chosen, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (POINTS - 1))] for i in range(POINTS)]


def _svg(said: str, content: str, high: float = HIGH) -> str:
    return f"<svg role=img aria-label='{escape(said)}' viewBox='0 0 {WIDE} {high:g}'>{content}</svg>"
