"""Days under a real Prefect server: quiet ones, bad data, a power cut, and days that nobody was there for."""

import pytest
from _checkout import DISTILL, ITEMS, LANGUAGE, RECOMMEND, WRITING, Checkout, copied
from _deployed import ENDED, Receiver, deployed, until

CHANGED = "\n\n_good = fetch\n\n\ndef fetch(out, source, documents, seed):\n    _good(out, source, documents, seed)\n"
TORN = CHANGED + "    (out / 'listings.jsonl').write_bytes(b'\\xff\\xfe torn')\n"
SLOW = CHANGED + "    __import__('time').sleep(3600)\n"


def patient(path) -> None:
    """Who looks after a dead run here is `up`: on a slow machine the server's 90 s of silence would come first."""
    text = path.read_text()
    assert "timedelta(seconds=90)" in text
    path.write_text(text.replace("timedelta(seconds=90)", "timedelta(seconds=900)"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory, warm):
    """A checkout with one small data set and no models, deployed; what the webhook is told is in `said`."""

    def little(params: dict) -> None:
        params["datasets"] = {"corpora": params["datasets"]["corpora"] | {"documents": 200}}

    made = copied(tmp_path_factory.mktemp("desk") / "rootstock", little,
                  without=RECOMMEND + ITEMS + LANGUAGE + WRITING + DISTILL)  # fmt: skip
    patient(made.folder / "tasks/deploy.py")
    Checkout(made.folder, warm).repro()
    with Receiver() as receiver, deployed(made, webhook=receiver.url) as place:
        place.up()
        place.said = receiver.said
        place.code = made.folder / "tasks/datasets/corpora.py"
        place.good = place.code.read_text()
        yield place


def test_a_day_without_news_is_quiet(desk):
    assert desk.await_run(desk.start()[0], ENDED)["state"] == "Completed"
    assert desk.said == []


def test_bad_data_fail_the_day_and_are_told_once(desk):
    manifest = desk.checkout.json("artifacts/ingest/corpora/manifest.json")
    desk.code.write_text(desk.good + TORN)
    refused = desk.await_run(desk.start()[0], ENDED)
    desk.code.write_text(desk.good)
    assert refused["state"] == "Failed"
    assert "1 of 1 datasets failed" in refused["message"]
    assert "listings.jsonl" in refused["message"]
    assert "Traceback" not in refused["message"]
    assert desk.checkout.json("artifacts/ingest/corpora/manifest.json") == manifest
    until(lambda: desk.said, "a message to the webhook")
    told = desk.said[0]
    assert (told["deployment"], told["run"], told["state"]) == ("watch", refused["name"], "Failed")
    assert "1 of 1 datasets failed" in told["text"]


def test_after_a_power_cut_the_dead_run_is_told_and_missed_days_are_caught_up_once(desk):
    """Also when the schedule has been taken out of prefect.yaml meanwhile."""
    desk.code.write_text(desk.good + SLOW)
    dead = desk.start()[0]
    until(lambda: len(desk.open()) == 2, "`watch`, and `data` that it calls")
    before = {run["id"] for run in desk.runs()}
    desk.schedule(every=5)
    news = lambda: [run for run in desk.runs() if run["id"] not in before]
    until(lambda: [run for run in news() if run["state"] == "Cancelled"], "a run that is due while another is at work")
    desk.kill("worker")
    cancelled = {run["id"] for run in news() if run["state"] == "Cancelled"}
    until(lambda: len(desk.missed()) >= 2, "two runs that nobody took")
    missed = {run["id"] for run in desk.missed()}
    desk.kill("server")
    desk.code.write_text(desk.good)
    desk.schedule(every=None, deploy=False)

    said = desk.up()
    assert said.count("its process is gone") == 1
    assert said.count("catches up on what was missed") == 1
    crashed = desk.await_run(dead, ENDED)
    assert (crashed["state"], crashed["message"]) == ("Crashed", "its process is gone")
    until(lambda: len(desk.said) > 1, "a message to the webhook")
    assert (desk.said[1]["run"], desk.said[1]["state"]) == (crashed["name"], "Crashed")
    assert "watch Crashed: its process is gone" in desk.said[1]["text"]

    until(lambda: all(run["state"] in ENDED for run in news()), "an end of all runs")
    assert desk.open() == []  # `data`, which the dead run had called, is no more
    (caught,) = [run for run in news() if run["tags"] == ["catch-up"]]
    assert caught["state"] == "Completed"  # in the place that the dead run had, and DVC's locks are free again
    late = [run for run in news() if run["id"] not in {*cancelled, caught["id"]}]
    assert {run["message"] for run in late} == {"missed: nobody was up; one run catches up"}
    assert missed <= {run["id"] for run in late}


def test_nobody_was_told_twice(desk):
    """Last: what a flow said of flows that it called, or what came late, would be here by now."""
    assert [said["state"] for said in desk.said] == ["Failed", "Crashed"]
