"""Always runs: which MLflow registry is this? A deleted one gets a new identity, and every promotion is stale.

Cheap on purpose (standard library only): an SQLite registry is read as a file, a server is asked one question. Training
must never wait for a registry, so a registry that does not answer leaves the file as it was, with a warning.
"""

import base64
import json
import os
import sqlite3
import sys
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from tasks.command import run
from tasks.files import read_json, write_json
from tasks.score import without_passwords

__all__ = ["registry"]

NAME, IDENTITY = "rootstock", "rootstock.identity"  # as in track.py, whose import would cost seconds
SECONDS = 2
SQLITE = "sqlite:///"


def registry(out: Path) -> str:
    """Write `{"registry": identity}`, creating the registry at first use; returns the identity."""
    address = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlruns/mlflow.db"
    try:
        found = _ask(address) or _create()
    except (OSError, ValueError, sqlite3.Error) as error:
        shown = without_passwords(address)
        found = read_json(out)["registry"] if out.is_file() else "unknown"
        print(
            f"warning: MLflow at {shown} does not answer ({error}); training goes on, promotions will not",
            file=sys.stderr,
        )
    write_json(out, {"registry": found})
    return found


def _ask(address: str) -> str | None:
    if address.startswith(SQLITE):
        return _ask_file(Path(address.removeprefix(SQLITE)))
    if address.startswith(("http://", "https://")):
        return _ask_server(address.rstrip("/"))
    return None


def _ask_file(file: Path) -> str | None:
    if not file.is_file():
        return None
    connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True, timeout=SECONDS)
    try:
        query = "select value from experiment_tags join experiments using (experiment_id) where key = ? and name = ?"
        found = connection.execute(query, (IDENTITY, NAME)).fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):  # an empty file: the creation was killed
            return None
        raise
    finally:
        connection.close()
    return found and found[0]


def _ask_server(address: str) -> str | None:
    request = Request(f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={NAME}")
    user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    elif user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    try:
        with urlopen(request, timeout=SECONDS) as answer:
            tags = json.load(answer)["experiment"].get("tags", [])
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    except URLError as error:
        raise OSError(error.reason) from None
    return next((tag["value"] for tag in tags if tag["key"] == IDENTITY), None)


def _create() -> str:
    from tasks import track  # seconds, once in the life of a registry

    return track.identity()


def main(out: str) -> None:
    """python -m tasks.registry OUT.json"""
    registry(Path(out))


if __name__ == "__main__":
    run(main)
