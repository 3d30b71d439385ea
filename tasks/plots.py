"""Small pictures of a model, as PNG bytes: equal inputs give equal bytes, and no display is needed."""

from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["beside", "by_layer", "curves", "difference", "intervals", "paths", "reliability", "roc"]

# Okabe and Ito's colours: distinct for colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#888888"


def roc(lines: Mapping[str, tuple[ArrayLike, ArrayLike, float]]) -> bytes:
    """Receiver operating characteristic: name -> (false positive rates, true positive rates, AUC)."""
    figure, axes = _square("False positive rate", "True positive rate")
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for colour, (name, (false, true, auc)) in zip(_colours(len(lines)), lines.items(), strict=True):
        axes.plot(false, true, color=colour, linewidth=1.8, label=f"{name}  {auc:.3f}")
    if lines:
        axes.legend(title="AUC", loc="lower right", frameon=False, alignment="left")
    return _png(figure)


def reliability(lines: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]]) -> bytes:
    """Observed against predicted: name -> (mean prediction, share of positives, rows) per bin; empty bins are left out.

    Both axes are logarithmic, because the events of a shop are rare; a bin without any positive lies on the lower edge.
    """
    shown = {name: np.array(bins, dtype=float)[:, np.asarray(bins[2]) > 0] for name, bins in lines.items()}
    positive = np.concatenate([bins[:2][bins[:2] > 0] for bins in shown.values()] or [np.array([])])
    low = 10 ** np.floor(np.log10(positive.min())) if len(positive) else 0.1
    figure, axes = _square("Mean predicted probability", "Share of positives")
    axes.plot([low, 1], [low, 1], color=GREY, linewidth=1, linestyle=(0, (4, 3)))
    for colour, (name, (predicted, observed, rows)) in zip(_colours(len(shown)), shown.items(), strict=True):
        axes.plot(predicted.clip(low), observed.clip(low), color=colour, linewidth=1.2, label=name, zorder=2)
        size = 12 + 60 * rows / max(rows.max(initial=0), 1)
        axes.scatter(
            predicted.clip(low), observed.clip(low), s=size, color=colour, edgecolor="white", linewidth=0.6, zorder=3
        )
    axes.set(xscale="log", yscale="log", xlim=(low * 0.9, 1.1), ylim=(low * 0.9, 1.1))
    axes.legend(loc="upper left", frameon=False, title="dot area: rows", alignment="left")
    return _png(figure)


def curves(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Training: every column over `step`; losses and other metrics in one panel each."""
    names = [name for name in (rows[0] if rows else {}) if name not in ("step", "epoch")]
    panels = [part for part in ([n for n in names if "loss" in n], [n for n in names if "loss" not in n]) if part]
    figure, grid = _figure(4.2 * max(len(panels), 1), 3.2, max(len(panels), 1))
    steps = [row["step"] for row in rows]
    for axes, part in zip(grid, panels, strict=False):
        for colour, name in zip(_colours(len(part)), part, strict=True):
            axes.plot(
                steps, [row[name] for row in rows], color=colour, marker="o", markersize=3, linewidth=1.5, label=name
            )
        axes.set_xlabel("Step")
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def difference(intervals: Mapping[str, tuple[float, float, float]], margin: float, metric: str) -> bytes:
    """Candidate minus champion: name -> (low, estimate, high); everything right of `margin` passes."""
    figure, (axes,) = _figure(5.2, 1.1 + 0.4 * max(len(intervals), 1), 1)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(margin, color=COLOURS[1], linewidth=1, linestyle=(0, (4, 3)), label=f"needed: {margin:+.4g}")
    for place, (low, middle, high) in enumerate(intervals.values()):
        colour = COLOURS[2] if low >= margin else COLOURS[1]
        axes.plot([low, high], [place, place], color=colour, linewidth=2)
        axes.plot(middle, place, "o", color=colour, markersize=6)
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set_ylim(len(intervals) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(f"{metric}: candidate minus champion")
    axes.legend(frameon=False, fontsize=8, loc="best")
    return _png(figure)


def intervals(found: Mapping[str, tuple[float, float, float]], reference: float, axis: str, said: str) -> bytes:
    """Estimates: name -> (low, value, high), and a line at what is known.

    Args:
        reference: where the line stands; `said` names it.
        axis: what is estimated.
    """
    figure, (axes,) = _figure(5.6, 1.1 + 0.4 * max(len(found), 1), 1)
    axes.axvline(reference, color=COLOURS[1], linewidth=1, linestyle=(0, (4, 3)), label=f"{said}: {reference:.4g}")
    for place, (low, middle, high) in enumerate(found.values()):
        axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2)
        axes.plot(middle, place, "o", color=COLOURS[0], markersize=6)
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(max(len(found), 1) - 0.5, -0.5)
    axes.set_xlabel(axis)
    axes.legend(frameon=False, fontsize=8, loc="best")
    return _png(figure)


def paths(found: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str) -> bytes:
    """What is given up for what: name -> points (x, y), joined in their order; one point is a mark alone."""
    figure, (axes,) = _figure(4.8, 3.6, 1)
    for colour, (name, points) in zip(_colours(len(found)), found.items(), strict=True):
        across, up = zip(*points, strict=True)
        axes.plot(across, up, color=colour, marker="o", markersize=4, linewidth=1.4, label=name)
    axes.set(xlabel=x, ylabel=y)
    if found:
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def beside(found: Mapping[str, Mapping[str, float]], metrics: Sequence[str], at: Sequence[int]) -> bytes:
    """Bars of a model beside those of a floor: one panel a metric, one group a cut-off; name -> {"recall@20": ...}."""
    figure, grid = _figure(3.4 * len(metrics), 3.0, len(metrics))
    width, place = 0.8 / len(found), np.arange(len(at))
    for axes, metric in zip(grid, metrics, strict=True):
        for index, (colour, (name, values)) in enumerate(zip(_colours(len(found)), found.items(), strict=True)):
            heights = [values[f"{metric}@{k}"] for k in at]
            axes.bar(place + (index - (len(found) - 1) / 2) * width, heights, width, color=colour, label=name)
        axes.set_xticks(place, [f"@{k}" for k in at])
        axes.set_title(metric, fontsize=10, loc="left")
    grid[0].legend(frameon=False, fontsize=8)
    return _png(figure)


def by_layer(lines: Mapping[str, Sequence[float]], what: str) -> bytes:
    """A share in [0, 1] after each layer: name -> one value a layer, from the embeddings on."""
    figure, (axes,) = _figure(5.2, 3.2, 1)
    for colour, (name, values) in zip(_colours(len(lines)), lines.items(), strict=True):
        axes.plot(range(len(values)), values, color=colour, marker="o", markersize=3, linewidth=1.5, label=name)
    highest = max(max(values) for values in lines.values())
    axes.set(xlabel="Layer (0: embeddings)", ylabel=what, ylim=(-0.03 * highest or -0.03, 1.08 * highest or 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _square(x: str, y: str):
    figure, (axes,) = _figure(4.4, 4.2, 1)
    axes.set(xlabel=x, ylabel=y, xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure, axes


def _figure(width: float, height: float, panels: int):
    from matplotlib.figure import Figure  # without pyplot: no global state, no display

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    grid = figure.subplots(1, panels, squeeze=False)[0]
    for axes in grid:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e5e5e5", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, grid


def _colours(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


def _png(figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", metadata={"Software": None})  # no version, no date: equal bytes
    return content.getvalue()
