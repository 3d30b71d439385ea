"""Drift as Prefect sees it: an event that an automation can listen to, with what is over in it."""

import time

from prefect import flow
from prefect.client.orchestration import get_client

from flows import watch as module
from tasks import monitor as unit


def test_what_is_over_arrives_as_an_event(prefect, made, monkeypatch):
    monkeypatch.setattr(module, "make", made)
    monkeypatch.setattr(unit, "due", lambda chosen, ingest, out: True)
    monkeypatch.setattr(unit, "monitor", lambda *words: {})
    monkeypatch.setattr(unit, "alarms", lambda done: ["price: psi 0.31 (at most 0.2)"])

    @flow
    def night():
        return module.look("other")

    assert night() == ["price: psi 0.31 (at most 0.2)"]
    with get_client(sync_client=True) as client:
        [event] = arrived(client, module.DRIFT)
    assert event["resource"]["prefect.resource.id"] == "rootstock.dataset.other"
    assert event["payload"] == {"dataset": "other", "over": ["price: psi 0.31 (at most 0.2)"]}
    assert any(one["prefect.resource.role"] == "flow-run" for one in event["related"])


def arrived(client, name: str) -> list[dict]:
    """The events of a name, once there are any: the server learns of them late."""
    for _ in range(150):
        answer = client.request("POST", "/events/filter", json={"filter": {"event": {"name": [name]}}})
        if found := answer.json()["events"]:
            return found
        time.sleep(0.2)
    return []
