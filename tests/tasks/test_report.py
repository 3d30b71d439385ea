"""The report: what ran, what it took, before and after, samples; the journal it is read from."""

import json
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import polars as pl
import pytest
from _reported import BEGAN, made_up, verdict, write

from tasks import journal, report_graph, report_models, report_samples, report_svg
from tasks.report import attach, publish, report

VOID = {"meta", "br", "img", "input", "hr"}


def paged(root, **asked) -> str:
    out = root / "artifacts/report/index.html"
    report(str(root / "params.yaml"), root / "artifacts", root / "data", out, journal=root / "journal", **asked)
    return out.read_text()


def section(page: str, name: str) -> str:
    found = re.search(rf"<h2 id='{name}'>.*?(?=<h2 |</main>)", page, re.DOTALL)
    assert found, f"no section {name}"
    return found[0]


def row(page: str, first: str) -> list[str]:
    """The words of the cells of the row that begins with `first`."""
    for line in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL):
        cells = [re.sub("<[^>]+>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", line, re.DOTALL)]
        if cells and cells[0] == first:
            return cells
    raise AssertionError(f"no row {first!r}")


def test_stages_say_what_ran_and_what_it_took(tmp_path):
    page = section(paged(made_up(tmp_path), stale={"prompt@task_1"}), "what-ran")
    assert row(page, "backbone")[1:4] == ["fresh", "2026-09-21 14:05", "100.0"]
    assert row(page, "prompt@task_0") == ["prompt@task_0", "ran in this run", "2026-09-21 14:13", "2.5", "", "300"]
    assert row(page, "prompt@task_1")[1] == "stale"
    assert row(page, "gate@task_0")[1] == "failed"
    assert row(page, "fresh_unit &lt;new&gt;")[1] == "failed"  # never succeeded: it has no place in dvc.lock
    assert "without results in this checkout: 1<" in page and "elsewhere" in page


def test_without_asking_dvc_nothing_is_called_fresh(tmp_path):
    page = section(paged(made_up(tmp_path)), "what-ran")
    assert row(page, "gate@task_1")[1] == "built before" and "fresh" not in page.replace("fresh_unit", "")


def test_an_earlier_start_widens_the_run(tmp_path):
    page = paged(made_up(tmp_path), since=BEGAN - 1000)
    assert row(page, "backbone")[1] == "ran in this run"
    assert "<dd>4 of 6</dd>" in page  # backbone, a prompt, a gate and the unit that never succeeded


def test_the_graph_goes_from_what_makes_to_what_needs_it(tmp_path):
    root = made_up(tmp_path, tasks=1)
    found, absent = report_graph.stages(root, root / "journal", BEGAN, set())
    assert {stage.name: stage.needs for stage in found} == {
        "backbone": set(), "fresh_unit <new>": set(), "prompt@task_0": {"backbone"},
        "gate@task_0": {"backbone", "prompt@task_0"},
    }  # fmt: skip
    assert absent == ["elsewhere"]
    drawn = report_graph.graph(found)
    assert drawn.count("<rect") == 4
    assert drawn.count("<path") == 2  # backbone -> prompt -> gate; the direct line is said already


def test_before_and_after_is_sorted_with_the_worst_slice_first(tmp_path):
    root = made_up(tmp_path, tasks=1)
    told = verdict("task_0", 3)
    told["champion"]["slices"][2]["auc"] = 0.9
    write(root / "artifacts/gate/task_0/verdict.json", told)
    page = section(paged(root), "before-and-after")
    slices = re.findall(r"c0_name = Category (\d)", page)
    assert slices == ["2", "0", "1"]
    assert "-0.1980" in page and "version 3" in page
    assert "First of its kind" in page and "recommend-backbone" in page


def test_metrics_of_texts_stand_beside_the_champions():
    told = verdict("writer", 0) | {"intervals": {}, "metrics": {"heldout": {"loss": 2.0, "lm": 1.0}}}
    told["champion"] |= {"metrics": {"heldout_loss": 4.0, "gone": 1.0}, "slices": []}
    assert row(report_models.differences({"language-writer": (told, None)}), "heldout_loss") == [
        "heldout_loss",
        "4",
        "2",
        "-2",
    ]


def test_the_same_bytes_are_called_the_champion():
    told = verdict("a", 1)
    told["candidate"] = told["champion"]["content"]
    assert "very bytes of the champion: recommend-a" in report_models.differences({"recommend-a": (told, None)})


def test_calibration_is_drawn_from_predictions_or_from_the_verdict(tmp_path):
    page = section(paged(made_up(tmp_path, tasks=1)), "calibration")
    assert page.count("<svg") == 2  # the task's own predictions, the backbone's gate
    assert "on 60 rows 0.305 predicted on average, 0.15 observed" in page
    assert "on 9000 rows 0.05 predicted on average, 0.0467 observed" in page


def test_every_feature_that_drifted_is_listed_the_furthest_first(tmp_path):
    page = section(paged(made_up(tmp_path)), "drift")
    assert re.findall(r"feature_\d", page) == ["feature_2", "feature_0", "feature_1", "feature_3"]  # 2 is over
    assert page.count("over</span>") == 1
    assert "answers of recommend-task_0" in page and "0.81" in page


def test_without_a_monitor_only_the_mix_of_events_is_compared(tmp_path):
    root = made_up(tmp_path)
    (root / "artifacts/monitor/merrec.json").unlink()
    page = section(paged(root), "drift")
    assert "mix of events" in page and "merrec only the mix of events" in page


def test_recommendations_have_titles_and_what_happened(tmp_path):
    page = section(paged(made_up(tmp_path, tasks=1)), "recommendations")
    assert "A &lt;b&gt;56&lt;/b&gt; &amp; co" in page and "<b>5" not in page
    title = "A &lt;b&gt;56&lt;/b&gt; &amp; co"  # the likeliest of 0, 4 ... 56, which user 0 saw
    assert row(page, title) == [title, "0.5700", "yes", "56.00", "0"]


def test_lists_of_a_recommender_have_titles(tmp_path, monkeypatch):
    packed = tmp_path / "recommender/next/packed"
    packed.mkdir(parents=True)
    pl.DataFrame({"user": [7], "history": [["p1"]]}).write_parquet(packed / "example.parquet")
    events = tmp_path / "ingest/merrec/events"
    events.mkdir(parents=True)
    pl.DataFrame({"product_id": ["p1", "p2"], "name": ["A lamp", "A desk"]}).write_parquet(events / "0.parquet")
    answer = pl.DataFrame({"items": [["p2", "p9"]], "scores": [[1.0, 0.5]], "known": ["history"]})
    opened = SimpleNamespace(lists=lambda requests, k: answer)
    monkeypatch.setattr("tasks.recommender.load", lambda folder: opened)
    models = {"next": {"method": "session/sasrec", "data": "merrec", "sequences": {"unit": "product_id"}}}
    page = report_samples.recommendations({}, models, tmp_path)
    assert "A lamp" in page and "A desk<br>p9" in page


def test_texts_are_escaped_and_stand_beside_the_champions(tmp_path):
    page = section(paged(made_up(tmp_path)), "texts")
    assert "A new &lt;bike&gt;" in page and "An old bike" in page
    assert "kept" in page and "left" not in page


def test_nothing_there_is_said_in_a_line_each(tmp_path):
    root = made_up(tmp_path / "whole")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "params.yaml").write_text((root / "params.yaml").read_text())
    page = paged(bare)
    for name in ("what-ran", "tasks", "champions", "before-and-after", "calibration", "training", "data", "drift",
                 "recommendations", "texts"):  # fmt: skip
        assert "<p class=dim>" in section(page, name) and "<table" not in section(page, name), name


def test_the_page_is_whole_and_asks_nobody(tmp_path):
    page = paged(made_up(tmp_path))
    open_ = []

    class Whole(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in VOID:
                open_.append(tag)

        def handle_startendtag(self, tag, attributes):
            pass

        def handle_endtag(self, tag):
            assert open_.pop() == tag

    Whole().feed(page)
    assert open_ == []
    assert not re.search(r"<script|https?://|src=|@import|url\(", page)
    assert page.count("<svg role=img aria-label=") == page.count("<svg ")


def test_equal_inputs_give_equal_bytes(tmp_path):
    root = made_up(tmp_path)
    assert paged(root) == paged(root)


def test_it_is_kept_with_the_runs_of_what_was_promoted(tmp_path, monkeypatch):
    root, kept = made_up(tmp_path), []
    paged(root)
    monkeypatch.setattr("tasks.track.attach", lambda *told: kept.append(told), raising=False)
    runs = attach(root / "artifacts/report/index.html", root / "artifacts", None)
    assert runs == ["r0", "r1"] == [run for run, _, _ in kept]
    assert all(place == "report/index.html" and "href='../" not in page for _, place, page in kept)
    assert attach(root / "artifacts/report/index.html", root / "artifacts", 9e9) == []


def test_publishing_asks_dvc_and_keeps_the_page(tmp_path, monkeypatch):
    root, kept = made_up(tmp_path), []
    monkeypatch.setattr("tasks.repro.stale", lambda: ["prompt@task_1"])
    monkeypatch.setattr("tasks.report.FOLDER", root / "journal")
    monkeypatch.setattr("tasks.track.attach", lambda *told: kept.append(told), raising=False)
    out = root / "artifacts/report/index.html"
    found, runs = publish(str(root / "params.yaml"), root / "artifacts", root / "data", out, BEGAN)
    assert list(found) == ["view", "task_0", "task_1"] and len(kept) == len(runs) == 2
    assert row(section(out.read_text(), "what-ran"), "prompt@task_1")[1] == "stale"


@pytest.mark.parametrize("points", [[], [(1, float("nan"))]])
def test_a_picture_of_nothing_is_none(points):
    assert report_svg.lines("x", {"a": points}, "step") == ""


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    drawn = report_svg.lines("x", {"a": [(n, n) for n in range(10_000)]}, "step")
    points = re.search(r"points='([^']*)'", drawn)[1].split()
    assert len(points) == report_svg.POINTS
    assert [points[0].split(",")[0], points[-1].split(",")[0]] == ["46.0", "310.0"]
    assert "a from 0 to 9999" in drawn


def test_a_flat_curve_can_be_drawn():
    assert "polyline" in report_svg.lines("x", {"a": [(1, 0.5), (2, 0.5)]}, "step")


def test_journal_writes_start_and_end(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "FOLDER", tmp_path)
    monkeypatch.setenv("ROOTSTOCK_RUN", "flow-1")
    monkeypatch.setattr(sys, "argv", ["x/train.py", "a"])
    with journal.recorded():
        assert journal.stages_so_far() == ["train a"]
        assert journal.entries(tmp_path)[0].seconds is None
    with pytest.raises(ValueError), journal.recorded():
        raise ValueError
    first, second = journal.entries(tmp_path)
    assert (first.run, first.unit, first.words, first.failed, second.failed) == ("flow-1", "train", ("a",), False, True)
    assert first.seconds >= 0 and 10 < first.peak_memory_mb < 1e6
    assert journal.stages_so_far() == ["train a", "train a"]


def test_journal_is_silent_outside_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "FOLDER", tmp_path)
    monkeypatch.setattr(sys, "argv", ["pytest"])
    with journal.recorded():
        pass
    assert not list(tmp_path.iterdir())


def test_journal_survives_a_line_that_was_cut(tmp_path):
    whole = json.dumps({"unit": "a", "words": [], "time": 1.0})
    (tmp_path / "r.jsonl").write_text(f'{whole}\n{{"unit": "b", "wor')
    assert [entry.unit for entry in journal.entries(tmp_path)] == ["a"]
