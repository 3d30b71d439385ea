"""The chain on a past period, as an experiment of DVC: beside the working tree, judged by the gates, never promoted.

An experiment sees the events of that period and nothing later, the honest answer to "what would we have got then". It
runs in a temporary copy of the checkout with the same cache, so the current models, `dvc.lock` and the champions stay
as they are. `dvc exp show` compares periods; `dvc exp apply NAME && dvc repro` takes one over, through the usual gates.
"""

from datetime import datetime

from tasks.repro import StageFailed, dvc
from tasks.settings import SettingsError

__all__ = ["backfill"]


def backfill(dataset: str, since: str | None, until: str | None, stages: list[str]) -> list[str]:
    """Run `stages` and all that they need on the events of since <= stime < until.

    Args:
        dataset: name below `datasets`; the period is set as `datasets.<name>.since` and `.until`, which ingest obeys.
        since: ISO date or time, UTC; None: from the first event.
        until: likewise; None: to the last event.
        stages: DVC stages, the gates of what is to be judged.

    Returns:
        DVC's metrics of that period beside those of the commit, as lines of Markdown.

    Raises:
        SettingsError: no period, a date that is none, or an empty period.
        StageFailed: the period has no events, a stage failed, or this is no git checkout with a commit.
    """
    period = {"since": since, "until": until}
    times = {name: _time(name, value) for name, value in period.items() if value}
    if not times:
        raise SettingsError("a backfill needs a period: since, until or both")
    if len(times) == 2 and times["since"] >= times["until"]:
        raise SettingsError(f"the period from {since} until {until} is empty; since must be before until")
    name = f"backfill-{_word(since, 'start')}-{_word(until, 'end')}"
    changes = [word for key in times for word in ("-S", f"++datasets.{dataset}.{key}='{period[key]}'")]
    status, lines = dvc("exp", "run", "--temp", "--force", "--name", name, *changes, *stages)
    if status:
        said = [line for line in lines if line.startswith(("error: ", "ERROR: "))] or lines[-10:]
        raise StageFailed(name, "\n".join(said), None)
    status, lines = dvc("metrics", "diff", "--md", "HEAD", name)
    if status:
        raise StageFailed(name, "\n".join(lines[-10:]), None)
    return [f"Experiment {name}: `dvc exp show`; take it over with `dvc exp apply {name} && dvc repro`.", "", *lines]


def _time(name: str, value: str) -> datetime:
    try:
        return datetime.fromisoformat(value).replace(tzinfo=None)
    except ValueError:
        raise SettingsError(
            f"{name} must be a date or time such as 2023-05-01 or 2023-05-01T12:00, got {value!r}"
        ) from None


def _word(value: str | None, otherwise: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in value or otherwise)
