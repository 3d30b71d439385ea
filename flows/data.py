"""Fetch and check every dataset of params.yaml, then ingest it."""

from prefect import flow

from flows._command import start
from tasks.command import run
from tasks.make import make
from tasks.repro import StageFailed, alone
from tasks.settings import read

__all__ = ["DataFailed", "data"]


class DataFailed(ValueError):
    """Some datasets were refused or could not be fetched; their last good versions stay, the others are up to date."""


@flow(log_prints=True)
def data() -> list[str]:
    """Bring landing/, data/ and the ingested tables up to date; a refused dataset does not hold up the others.

    Returns:
        The stages that ran.

    Raises:
        StageFailed: data/ holds somebody's own files, or cannot be written.
        DataFailed: at the end; names each dataset and what was wrong with it.
        Busy: another run holds this checkout.
    """
    names, failed = list(read("params.yaml:datasets")), {}

    def attempt(step: str) -> list[str]:
        ran = []
        for name in names:
            try:
                ran += make(f"{step}@{name}", single=True) if name not in failed else []
            except StageFailed as error:
                failed[name] = error
        return ran

    with alone():
        ran = make("guard", single=True) + attempt("fetch") + make("data.dvc", single=True) + attempt("ingest")
    if failed:
        words = "".join(f"\n{name}: {error}" for name, error in failed.items())
        raise DataFailed(f"{len(failed)} of {len(names)} datasets failed, the others are up to date{words}")
    return ran


if __name__ == "__main__":
    run(lambda: start(data))
