"""The curve of a run: all columns in the table, losses and what is asked for in the picture."""

from tasks import plots
from tasks.curve import write_curve


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
