"""Seed instructions and all other words of ours, read from seeds.yaml and checked."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import yaml

from models.language.llama_e import FEATURES, TASKS
from tasks.files import digest
from tasks.settings import SettingsError

__all__ = ["SLOTS", "Seeds", "Wording", "read_seeds"]

FILE = Path(__file__).with_name("seeds.yaml")
SLOTS = ("occasion", "audience")  # what a record fills into an instruction
PARTS = ("seeds", "occasions", "audiences", "names", "money", "frames", "texts", "values", "glossary")


@dataclass(frozen=True)
class Wording:
    """An instruction, before its slots are filled."""

    id: str
    task: str
    language: str
    presents: tuple[str, ...]
    requires: str
    text: str
    seeds: tuple[str, ...]  # the expert's that it comes from: itself, or those that were shown to the teacher
    kind: str = "expert"  # or the writer's name

    @property
    def slots(self) -> set[str]:
        """Names in braces."""
        return {name for _, name, _, _ in string.Formatter().parse(self.text) if name is not None}

    @property
    def job(self) -> str:
        """What is written from what; `title` from a query is another job than from an advertisement."""
        return f"{self.requires}/query" if self.requires == "title" and "query" in self.presents else self.requires


@dataclass(frozen=True)
class Seeds:
    """What seeds.yaml says."""

    wordings: list[Wording]
    words: Mapping[str, Mapping]  # the other parts
    digest: str

    def frames(self, job: str, language: str) -> list[str]:
        """All wordings of ours that templates may use for a job."""
        parts = self.words["frames"].get(language, {}).get(job.partition("/")[0])
        if not parts or job == "title":  # the frames of a title speak of a query
            return []
        between = " " if language == "en" else ""
        return [between.join(choice).replace(" ，", "，") for choice in product(*parts)]

    def texts(self, requires: str, language: str) -> list[str]:
        """Patterns that templates write a feature by."""
        return self.words["texts"].get(language, {}).get(requires, [])

    @property
    def languages(self) -> list[str]:
        """That have instructions."""
        return sorted({wording.language for wording in self.wordings})


def read_seeds(more: Sequence[str] = ()) -> Seeds:
    """Our seeds, and those of other files of the same form, such as one for a third language.

    Raises:
        SettingsError: a file has no such form; names all faults.
    """
    parts, files = {}, [FILE, *map(Path, more)]
    for file in files:
        if not file.is_file():
            raise SettingsError(f"there are no seeds at {file}")
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(found, Mapping) or (unknown := sorted(set(found) - set(PARTS))):
            raise SettingsError(f"{file}: seeds have the parts {', '.join(PARTS)}; this has {', '.join(unknown)}")
        for name, value in found.items():
            parts[name] = [*parts.get(name, []), *value] if isinstance(value, list) else parts.get(name, {}) | value
    wordings = [
        Wording(each["id"], each["task"], each["language"], tuple(each["presents"]), each["requires"], each["text"],
                (each["id"],))
        for each in parts.pop("seeds")
    ]  # fmt: skip
    faults = [fault for wording in wordings if (fault := _fault(wording))]
    if len({wording.id for wording in wordings}) != len(wordings):
        faults.append("two seeds have one id")
    if faults:
        raise SettingsError(f"seeds of {', '.join(map(str, files))}: " + "; ".join(faults))
    return Seeds(wordings, parts, "".join(digest(file)[:16] for file in files))


def _fault(wording: Wording) -> str | None:
    """Why a seed breaks the contract of interleaving, or cannot be filled."""
    known = {*FEATURES, "question", "answer"}
    if wording.task not in TASKS or not {*wording.presents, wording.requires} <= known:
        return f"{wording.id} has a task or feature that there is not: {wording.task}, {wording.presents}"
    if wording.requires == "title" and "title" in wording.presents and "query" not in wording.presents:
        return f"{wording.id} asks for the title that it shows; only a query makes it another one"
    if wording.requires in wording.presents and wording.requires != "title":
        return f"{wording.id} asks for what it shows, {wording.requires}"
    if wording.requires == "brand" and "attributes" in wording.presents:
        return f"{wording.id} asks for a brand among the attributes that it shows"
    if more := wording.slots - {*SLOTS, "question"}:
        return f"{wording.id} has slots that nothing fills: {', '.join(sorted(more))}"
    return None
