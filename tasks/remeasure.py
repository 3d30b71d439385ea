"""A registered language model under the evaluation of its challenger: the same texts, jobs, base and settings.

An evaluation notes in its run.json all that it was made of, so that it can be asked of another model.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from tasks.comparable import OtherRows, Rescored
from tasks.files import read_json

__all__ = ["note", "remeasure"]


def note(what: str, model: Mapping, base: Mapping, settings: Mapping, data: Mapping, rows: int) -> dict:
    """What an evaluation writes as run.json.

    Args:
        what: "texts" (tasks/evaluate_language.py) or "authoring" (tasks/authoring/evaluate.py).
        model, base: {"folder", "content": SHA-256} of who was asked.
        settings: of the evaluation.
        data: {"folder": of the data, "content": {name: SHA-256} of what was read}.
        rows: how many questions and texts were asked.
    """
    asked = {"what": what, "base": base["content"], "settings": settings, "data": data["content"]}
    fingerprint = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return {"what": what, "model": dict(model), "base": dict(base), "settings": dict(settings), "data": dict(data),
            "rows": rows, "fingerprint": fingerprint}  # fmt: skip


def remeasure(champion: Path, evaluated: Path) -> Rescored:
    """The metrics of the model in the folder `champion` under the evaluation that wrote `evaluated`.

    Raises:
        OtherRows: the data, or the base, changed since.
    """
    about = read_json(evaluated / "run.json")
    if about["what"] == "authoring":
        from tasks.authoring.evaluate import evaluate as ask
    else:
        from tasks.evaluate_language import evaluate_language as ask
    with TemporaryDirectory() as place:
        out = Path(place) / "evaluated"
        ask(about["settings"], about["base"]["folder"], champion, about["data"]["folder"], out)
        found, metrics = read_json(out / "run.json"), read_json(out / "metrics.json")["evaluation"]
    if found["fingerprint"] != about["fingerprint"]:
        raise OtherRows(f"what {evaluated} was measured on has changed since; run its evaluation again before its gate")
    return Rescored(metrics)
