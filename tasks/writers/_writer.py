"""What writers share: prompts, records that say where a text comes from, and a file that a stopped run continues.

A record is a line of JSON: key, text, teacher, version, licence, prompt (its SHA-256). A line counts for a prompt when
teacher, version and prompt are those of now; so another model, or another wording, writes anew, and nothing else does.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from pathlib import Path
from pkgutil import iter_modules

import polars as pl

from tasks.files import locked
from tasks.settings import SettingsError

__all__ = ["Prompt", "Writer", "WriterRefused", "filtered", "open_writer", "prompt_hash", "write_all", "writers"]

SCHEMA = dict.fromkeys(("key", "text", "teacher", "version", "licence", "prompt"), pl.String)


class WriterRefused(ValueError):
    """A writer cannot answer, now or later: trying again would not help."""


@dataclass(frozen=True)
class Prompt:
    """What one text is asked for with."""

    key: str  # unique within a run, and stable: such as a hash of the row
    text: str
    fields: Mapping[str, str] = field(default_factory=dict)  # what the text was made of; templates read these


class Writer:
    """A teacher that writes.

    Attributes:
        teacher: who writes; changes with the model and with how it is asked.
        licence: of what it writes.
        batch: prompts that are worth giving at once.
    """

    teacher: str
    licence: str
    batch: int = 1

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        """One text for each prompt, in order; a text depends on its prompt alone.

        Raises:
            ConnectionError: no answer now, after all tries.
            WriterRefused: no answer at all.
        """
        raise NotImplementedError


def writers() -> list[str]:
    """All writers, read from the folder."""
    return sorted(m.name for m in iter_modules(import_module("tasks.writers").__path__) if m.name[0] != "_")


def open_writer(chosen: Mapping) -> Writer:
    """The writer of {name: settings}.

    Raises:
        SettingsError: no such writer, or a setting that it does not have; names what there is.
    """
    if not isinstance(chosen, Mapping) or len(chosen) != 1:
        raise SettingsError(f"a writer is one name with its settings, such as {{templates: {{...}}}}; got {chosen!r}")
    ((name, settings),) = chosen.items()
    if name not in writers():
        close = ", ".join(get_close_matches(str(name), writers()) or writers())
        raise SettingsError(f"there is no writer {name!r}; closest: {close}")
    module = import_module(f"tasks.writers.{name}")
    made = getattr(module, module.__all__[0])
    try:
        signature(made).bind(**(settings or {}))
    except TypeError as error:
        known = ", ".join(signature(made).parameters)
        raise SettingsError(f"writer {name}: {error}; it has: {known}") from None
    return made(**(settings or {}))


def write_all(writer: Writer, prompts: Sequence[Prompt], version: str, file: str | Path) -> pl.DataFrame:
    """The texts of all prompts, in their order; those that `file` already has are not written again.

    Args:
        writer: see `open_writer`.
        prompts: with keys of their own.
        version: of the prompts' wording.
        file: JSON lines, one added as soon as a batch is there; a line cut short by a kill is left out.

    Returns:
        key, text, teacher, version, licence, prompt: a row for each prompt.

    Raises:
        ValueError: two prompts have one key.
        ConnectionError, WriterRefused: see Writer; what was written before stays in `file`.
    """
    if repeated := [key for key, count in Counter(prompt.key for prompt in prompts).items() if count > 1]:
        raise ValueError(f"{len(repeated)} keys belong to several prompts, such as {repeated[0]!r}; keys must differ")
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    wanted = {prompt.key: prompt_hash(prompt.text) for prompt in prompts}
    with locked(str(file)):
        done = {
            record["key"]: record
            for record in _records(file)
            if (record["teacher"], record["version"]) == (writer.teacher, version)
            and wanted.get(record["key"]) == record["prompt"]
        }
        missing = [prompt for prompt in prompts if prompt.key not in done]
        with open(file, "a", encoding="utf-8") as lines:
            if lines.tell() and not _ends_whole(file):
                lines.write("\n")  # after a line that was cut short
            for first in range(0, len(missing), writer.batch):
                asked = missing[first : first + writer.batch]
                texts = writer.write(asked)
                if len(texts) != len(asked):
                    raise WriterRefused(f"{writer.teacher} gave {len(texts)} texts for {len(asked)} prompts")
                for prompt, text in zip(asked, texts, strict=True):
                    done[prompt.key] = {"key": prompt.key, "text": text, "teacher": writer.teacher, "version": version,
                                        "licence": writer.licence, "prompt": wanted[prompt.key]}  # fmt: skip
                    lines.write(json.dumps(done[prompt.key], ensure_ascii=False) + "\n")
                lines.flush()
                os.fsync(lines.fileno())
    return pl.DataFrame([done[prompt.key] for prompt in prompts], schema=SCHEMA)


def prompt_hash(text: str) -> str:
    """SHA-256 of a prompt."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def filtered(faults: Sequence[str | None]) -> dict:
    """What a filter kept and dropped: {"asked", "kept", "dropped": {reason: rows}}; a fault of None is a kept row."""
    dropped = Counter(fault for fault in faults if fault is not None)
    return {"asked": len(faults), "kept": len(faults) - dropped.total(), "dropped": dict(sorted(dropped.items()))}


def _records(file: Path) -> Iterator[dict]:
    if not file.is_file():
        return
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # cut short by a kill: its prompt is asked again
            if isinstance(record, dict) and set(SCHEMA) <= set(record):
                yield record


def _ends_whole(file: Path) -> bool:
    with open(file, "rb") as content:
        content.seek(-1, os.SEEK_END)
        return content.read(1) == b"\n"
