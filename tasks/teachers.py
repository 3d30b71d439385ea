"""The folders that teach: read once, known by their content, checked to speak of the same words and classes.

TEACHER of a command is such a folder, or the folder in which tasks/lent.py notes where each teacher of a table lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.components._model import Model, assemble
from models.distill._student import shape_of
from tasks.files import digest, read_if_there, read_json, write_json
from tasks.finetune import Start, load_start
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError

__all__ = [
    "Teacher", "TeacherChanged", "files_of", "larger_ones", "load_begun", "load_teachers", "noted", "refuse_changed",
]  # fmt: skip

MARKER = "teacher.json"


class TeacherChanged(ValueError):
    """A teacher's files, or those that its student began from, are not those that the run began with."""


@dataclass(frozen=True)
class Teacher:
    """A model that teaches, or that a student begins from, as it lies on disk."""

    folder: Path  # of tasks/finetune.py, tasks/pretrain.py or tasks/distill.py
    start: Start
    content: str  # SHA-256 of the files of its model: what its registered version is known by
    about: dict  # run.json, {} where there is none

    @classmethod
    def open(cls, folder: str | Path) -> "Teacher":
        """Read a folder.

        Raises:
            FileNotFoundError, TokenizerError, CheckpointRejected: see tasks/finetune.py, `load_start`.
        """
        folder = Path(folder)
        return cls(folder, load_start(folder), digest(files_of(folder)), read_if_there(folder / "run.json"))

    @property
    def size(self) -> int:
        """Numbers in its state."""
        return sum(tensor.numel() for tensor in self.start.state.values())

    def model(self) -> Model:
        """It, assembled, with its weights."""
        model = assemble(self.start.recipe)
        model.load_state_dict(self.start.state)
        return model.eval()

    def changed(self) -> bool:
        """Whether its files are others now."""
        return digest(files_of(self.folder)) != self.content


def load_teachers(folders: Sequence[str | Path]) -> list[Teacher]:
    """Open teachers; the order stays.

    Raises:
        SettingsError: none, or one of them twice.
        Rejected: they read words by different tokenizers, or are no transformers.
    """
    if not folders:
        raise SettingsError("a student needs at least one teacher")
    found = [Teacher.open(folder) for folder in folders]
    first = found[0]
    for place, other in enumerate(found[1:], start=1):
        if twin := next((one for one in found[:place] if one.content == other.content), None):
            raise SettingsError(f"{twin.folder} and {other.folder} are one teacher, which would count twice; take one")
        _refuse_other_words(other, first)
    for teacher in found:
        shape_of(teacher.start.recipe)
    return found


def load_begun(folder: str | Path, teachers: Sequence[Teacher]) -> Teacher:
    """Open the model from which a student of these teachers begins.

    Raises:
        FileNotFoundError, TokenizerError, CheckpointRejected: see tasks/finetune.py, `load_start`.
        SettingsError: it is one of its teachers.
        Rejected: it reads words by another tokenizer, has more layers than its teacher, or is no transformer.
    """
    begun, teacher = Teacher.open(folder), teachers[-1]
    if twin := next((one for one in teachers if one.content == begun.content), None):
        raise SettingsError(f"{begun.folder} and its teacher {twin.folder} are one model, which has nothing to learn "
                            f"from itself; begin from a smaller one")  # fmt: skip
    _refuse_other_words(begun, teacher)
    try:
        own, most = (shape_of(one.start.recipe).layers for one in (begun, teacher))
    except LookupError as error:
        raise Rejected(f"no student begins from {begun.folder}: {error}") from None
    if own > most:
        raise Rejected(f"{begun.folder} has {own} layers, its teacher {teacher.folder} has {most}: a student has as "
                       f"many at most; begin from a smaller model, or take a larger teacher")  # fmt: skip
    return begun


def _refuse_other_words(other: Teacher, first: Teacher) -> None:
    theirs, ours = (one.start.vocabulary.sha256 for one in (other, first))
    if theirs != ours:
        raise Rejected(
            f"{other.folder} reads words by another tokenizer ({theirs[:12]}) than {first.folder} ({ours[:12]}): the "
            f"same ids mean other words to it; train both with one tokenizer"
        )


def larger_ones(teacher: str | Path) -> list[Path]:
    """A student, its teacher, the teacher of that one ...: all larger models of a chain, from the smallest.

    Raises:
        FileNotFoundError: a teacher on the way is gone.
    """
    found = [Path(teacher)]
    while above := read_if_there(found[-1] / "run.json").get("teacher"):
        if not Path(above).is_dir():
            raise FileNotFoundError(f"{found[-1]} was taught by {above}, which is gone; run the chain from there")
        found.append(Path(above))
    return found


def noted(folder: str | Path, names: Sequence[str]) -> list[Path]:
    """Where the teachers of these names lie, from the notes that tasks/lent.py left in a folder.

    Raises:
        SettingsError: a name that the table does not have; names those it has.
    """
    there = {path.stem: path for path in sorted(Path(folder).glob("*.json"))}
    if unknown := [name for name in names if name not in there]:
        raise SettingsError(f"distill.teachers has no {', '.join(unknown)}; it has: {', '.join(there) or 'nothing'}")
    return [Path(read_json(there[name])["folder"]) for name in names]


def refuse_changed(kept: Path, teachers: Sequence[Teacher]) -> None:
    """A run's checkpoints are of its teachers: note them, or refuse others.

    Raises:
        TeacherChanged: the checkpoints were made under other files.
    """
    now, was = {str(one.folder): one.content for one in teachers}, read_if_there(kept / MARKER)
    if odd := [folder for folder in now if was and was.get(folder) != now[folder]]:
        said = "; ".join(f"{folder}: {str(was.get(folder))[:12]}, now {now[folder][:12]}" for folder in odd)
        raise TeacherChanged(f"{kept} was trained under teachers with other files ({said}); bring the teacher back, or "
                             f"delete the folder to start anew")  # fmt: skip
    kept.mkdir(parents=True, exist_ok=True)
    write_json(kept / MARKER, now)


def told(teachers: Sequence[Teacher], begun: Teacher | None = None) -> Mapping:
    """What run.json says of them, the last of which is the largest, and of what the student begins from."""
    last = teachers[-1]
    one = {"teacher": str(last.folder), "teacher_content": last.content}
    if begun is not None:
        one |= {"start": str(begun.folder), "start_content": begun.content}
    if len(teachers) == 1:
        return one
    return one | {"teachers": [{"folder": str(each.folder), "content": each.content} for each in teachers]}


def files_of(folder: Path) -> Path:
    """Where the files of its model are."""
    return folder / "model" if (folder / "model").is_dir() else folder
