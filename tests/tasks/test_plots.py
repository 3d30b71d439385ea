import numpy as np
import pytest

from tasks import plots

LINES = {"like": (np.array([0.0, 0.2, 1.0]), np.array([0.0, 0.7, 1.0]), 0.75)}
BINS = {"like": (np.array([0.01, 0.2, 0.5]), np.array([0.0, 0.25, 0.4]), np.array([10.0, 20.0, 0.0]))}
CURVE = [{"step": 10, "epoch": 1, "loss": 0.7, "val_auc": 0.6}, {"step": 20, "epoch": 2, "loss": 0.5, "val_auc": 0.7}]
INTERVALS = {"like": (-0.01, 0.002, 0.01)}
DRAWN = [
    (plots.roc, (LINES,), ({"like": (*LINES["like"][:2], 0.5)},)),
    (plots.reliability, (BINS,), ({"like": (*BINS["like"][:2], BINS["like"][2][::-1])},)),
    (plots.curves, (CURVE,), (CURVE[:1],)),
    (plots.difference, (INTERVALS, -0.005, "auc"), (INTERVALS, -0.02, "auc")),
    (plots.intervals, (INTERVALS, 0.0, "clicks", "logged"), (INTERVALS, 0.1, "clicks", "logged")),
    (plots.paths, ({"a": [(0, 1), (1, 0)], "b": [(1, 1)]}, "x", "y"), ({"a": [(0, 1)], "b": [(1, 1)]}, "x", "y")),
]


@pytest.mark.parametrize(("draw", "one", "other"), DRAWN)
def test_equal_inputs_give_equal_bytes_and_others_others(draw, one, other):
    first = draw(*one)
    assert first.startswith(b"\x89PNG")
    assert draw(*one) == first
    assert draw(*other) != first
    assert b"Software" not in first  # no version, no date


EMPTY = {"like": (np.zeros(2), np.zeros(2), np.zeros(2))}


@pytest.mark.parametrize(("draw", "nothing"), [(plots.roc, {}), (plots.curves, []), (plots.reliability, EMPTY)])
def test_nothing_to_draw_is_an_empty_picture(draw, nothing):
    assert draw(nothing).startswith(b"\x89PNG")


def test_a_reliability_bin_without_positives_is_on_the_edge_and_empty_bins_are_left_out(monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.scatter", lambda self, x, y, **_: drawn.append((x, y)))
    plots.reliability(BINS)
    ((x, y),) = drawn  # the smallest positive number is .01, which is the lower edge
    np.testing.assert_allclose(x, [0.01, 0.2])
    np.testing.assert_allclose(y, [0.01, 0.25])
