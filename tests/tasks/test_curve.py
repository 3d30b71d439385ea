"""The curve of a run: all columns in the table, losses and what is asked for in the picture."""

import polars as pl

from tasks import plots
from tasks.curve import on_end, write_curve


def test_every_column_that_any_row_has(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(plots, "curves", lambda rows: drawn.extend(rows) or b"picture")
    rows = [
        {"stage": "first", "step": 0, "heldout_loss": 2.5, "lr": 0.1},
        {"stage": "first", "step": 4, "loss": 2.0, "heldout_loss": 1.5, "lr": 0.2},
    ]
    write_curve(tmp_path, rows, "lr", "absent", picture="extra/curve.png")
    assert (tmp_path / "curve.csv").read_text() == (
        "stage,step,heldout_loss,lr,loss\nfirst,0,2.5,0.1,\nfirst,4,1.5,0.2,2.0\n"
    )
    assert (tmp_path / "extra/curve.png").read_bytes() == b"picture"
    assert [list(row) for row in drawn] == [["step", "loss", "heldout_loss", "lr"]] * 2
    assert drawn[0]["loss"] != drawn[0]["loss"]  # nothing was measured: NaN, which leaves a gap
    assert drawn[1] == {"step": 4.0, "loss": 2.0, "heldout_loss": 1.5, "lr": 0.2}


def test_a_picture_of_a_real_run(tmp_path):
    write_curve(tmp_path, [{"step": 0, "loss": None, "heldout_loss": 2.0}, {"step": 1, "loss": 1.0}])
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_method_without_steps_has_a_header_alone(tmp_path):
    write_curve(tmp_path, [], "score", picture="extra/curve.png")
    assert (tmp_path / "curve.csv").read_text() == "step,loss\n"
    assert pl.read_csv(tmp_path / "curve.csv").to_dicts() == []  # as a promotion reads it
    assert not (tmp_path / "extra").exists()


def test_stages_on_end_tell_the_step_between_them_once():
    first = [{"step": 0, "loss": None}, {"step": 4, "loss": 2.0}]
    second = [{"step": 0, "loss": None}, {"step": 3, "loss": 1.0}]
    rows = on_end({"a": first, "b": second, "c": [{"step": 2, "loss": 0.5}]})
    assert [(row["stage"], row["step"], row["loss"]) for row in rows] == [
        ("a", 0, None), ("a", 4, 2.0), ("b", 7, 1.0), ("c", 9, 0.5),
    ]  # fmt: skip
