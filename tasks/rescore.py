"""A registered language model measured anew, on the rows that its challenger is measured on today.

Numbers on different rows say nothing together, so the old model reads the new rows: held-out tokens as the candidate's
processor makes them, or labelled rows with its own tokenizer. Where even that says nothing (another vocabulary below a
loss per token, other classes, another target), the reason is told instead.
"""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from models.components._model import Model, assemble
from tasks.comparable import NotComparable, OtherRows, Rescored
from tasks.engine import Engine, HeldOut
from tasks.files import read_json
from tasks.finetune import Evaluation, Start, kind_of, load_start, retarget, rows_of, tagged
from tasks.kinds._kind import Kind, Rejected
from tasks.pretrain import rows_digest
from tasks.settings import SettingsError
from tasks.source import open_source
from tasks.tokenizer import TokenizerError

__all__ = ["rescore"]

CLASSES = ("classification", "pairs", "choice")  # kinds whose every answer is right or wrong


def rescore(champion: Path, made: Path, data: Path) -> Rescored:
    """Measure the model in the folder `champion` as the candidate in `made` was measured.

    Args:
        champion: files of a registered version.
        made: folder of tasks/pretrain.py, tasks/finetune.py or of a unit of distillation.
        data: tokens or an ingested set, which the candidate was made of.

    Raises:
        NotComparable: no number of the two would say anything; why.
        OtherRows: `data` changed since the candidate was measured.
    """
    about = read_json(made / "run.json")
    measure = _labelled if (data / "rows").is_dir() else _text
    return measure(load_start(champion), made, data, about)


def _text(start: Start, made: Path, data: Path, about: Mapping) -> Rescored:
    """Held-out loss: per token, so of one vocabulary only, and of the same targets."""
    recipe = read_json(made / "recipe.json")
    if start.vocabulary.sha256 != about["tokenizer"]:
        raise NotComparable(
            f"the champion has another tokenizer ({start.vocabulary.sha256[:12]}, not {about['tokenizer'][:12]}): a "
            f"loss per token says nothing across two vocabularies"
        )
    theirs, ours = (sorted(each["target"]) for each in (start.recipe, recipe["model"]))
    if theirs != ours:
        raise NotComparable(f"the champion learned {', '.join(theirs)}, the candidate {', '.join(ours)}")
    table = (start.recipe["embedding"].get("position") or {}).get("length", math.inf)
    if table < about["length"]:
        raise NotComparable(f"the champion reads {table} tokens, the rows have {about['length']}")
    settings = Engine.read(about["training"])
    student = "teacher_parameters" in about  # measured on the rows of one seed, whatever its own is
    seed = Engine.seed if student else settings.seed
    try:
        heldout = open_source(data, recipe["processor"], start.tokenizer, about["length"], seed, heldout=True)
    except TokenizerError as refused:
        raise NotComparable(f"the champion has another tokenizer: {refused}") from None
    held = HeldOut(heldout, settings)
    _refuse_others(about, heldout.fingerprint if student else rows_digest(heldout, held.rows), data)
    return Rescored(held(_model(start.recipe, start)))


def _labelled(start: Start, made: Path, data: Path, about: Mapping) -> Rescored:
    """Answers to the dev rows, each model reading with its own tokenizer."""
    rows = rows_of(data)
    _refuse_others(about, hashlib.sha256(rows["dev"].write_ndjson().encode()).hexdigest(), data)
    rows = {split: tagged(frame, about.get("tag", "")) for split, frame in rows.items()}
    chosen = {"kind": about["kind"], "length": about["length"], "settings": about.get("settings")}
    try:
        kind = kind_of(chosen, start, rows)
    except (Rejected, SettingsError) as refused:
        raise NotComparable(f"the champion cannot read these rows: {refused}") from None
    recipe = start.recipe if kind.target in start.recipe["target"] else retarget(start.recipe, kind.target, kind.head())
    _refuse_classes(start, kind)
    settings = Engine.read(about["training"])
    examples = kind.encode(rows["dev"], "dev")
    found, answers = Evaluation(kind, rows["dev"], examples, settings, "cpu").answers(_model(recipe, start))
    if not kind.answers_in_batches:
        written, answers = kind.judged(rows["dev"], kind.write(_plain(start, kind), examples))
        found = {"loss": found["loss"]} | written
    return Rescored(found, answers if about["kind"] in CLASSES else None)


def _model(recipe: Mapping, start: Start) -> Model:
    model = assemble(recipe)
    if absent := sorted(set(model.state_dict()) - set(start.state)):
        raise NotComparable(f"the champion's files have no {', '.join(absent[:3])}: it was made for something else")
    model.load_state_dict({name: start.state[name] for name in model.state_dict()})
    return model.eval()


def _plain(start: Start, kind: Kind):
    """As transformers loads it: what writes texts."""
    import transformers

    transformers.logging.set_verbosity_error()
    return (
        getattr(transformers, kind.loader)
        .from_pretrained(start.tokenizer, local_files_only=True, trust_remote_code=False, use_safetensors=True)
        .eval()
    )


def _refuse_classes(start: Start, kind: Kind) -> None:
    """Classes are known by their place: those of the champion must be today's, in today's order."""
    named = start.config.get("id2label") or {}
    known = [named[key] for key in sorted(named, key=int)]
    if kind.names() and known != kind.names():
        raise NotComparable(f"the champion's classes are {_listed(known)}, those of the rows {_listed(kind.names())}")


def _listed(names: list[str]) -> str:
    """At most eight names.

    >>> _listed([])
    'not told by its config.json'
    """
    told = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return told or "not told by its config.json"


def _refuse_others(about: Mapping, found: str, data: Path) -> None:
    if about["fingerprint"] != found:
        raise OtherRows(f"{data} is not what {about.get('name')} was measured on ({found[:12]}, not "
                        f"{about['fingerprint'][:12]}); run its stage again before its gate")  # fmt: skip
