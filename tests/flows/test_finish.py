"""The end of a flow: a page about the run where something was judged, and no failure for the want of one."""

import pytest

from flows import _command
from flows._command import finish


class Failed(ValueError):
    pass


@pytest.fixture
def told(monkeypatch) -> list[tuple]:
    found: list[tuple] = []
    monkeypatch.setattr(_command, "notice", lambda *given: found.append(given))
    return found


def end(done: dict, results: dict) -> dict:
    return finish("flow", "Flow", done, results, ["- said"], lambda ran: [{"stages": len(ran)}], Failed, "models")


def test_a_run_that_judged_has_a_page(told, monkeypatch):
    monkeypatch.setattr("tasks.report.publish", lambda *given: ("<html>", ["abc"]))
    monkeypatch.setattr("tasks.track.page_of", lambda run, place: f"http://here/{run}/{place}")
    end({"data": ["ingest@x"]}, {"kd": ["distill@kd", "gate_distill@kd", "promote_distill@kd"]})
    assert told == [("flow", "Flow", [{"stages": 2}], "- said", "http://here/abc/report/index.html")]


def test_a_run_without_a_verdict_has_none(told, monkeypatch):
    monkeypatch.setattr("tasks.report.publish", lambda *given: pytest.fail("published"))
    end({"data": ["ingest@x"]}, {"kd": []})
    assert told[0][-2:] == ("- said", "")


def test_a_page_that_cannot_be_written_is_told_and_stops_nothing(told, monkeypatch):
    def full(*given):
        raise OSError("no space left on device")

    monkeypatch.setattr("tasks.report.publish", full)
    assert end({}, {"kd": ["promote_distill@kd"]}) == {"kd": ["promote_distill@kd"]}
    assert told[0][-2].endswith("- no page about this run: no space left on device; `make report` writes it")


def test_a_failed_chain_is_named_after_the_report(told, monkeypatch):
    monkeypatch.setattr(_command, "published", lambda: ("", []))
    with pytest.raises(Failed, match="1 of 2 models failed, the others are done\n- .*kd.* failed: broke"):
        end({}, {"kd": ValueError("broke"), "pkd": ["promote_distill@pkd"]})
    assert len(told) == 1
