"""Replies that a teacher gave elsewhere: JSON lines with key, prompt and text, as tasks/writers/_writer.py writes them.

Whoever has a teacher that this host cannot reach asks it there, keeps the file under DVC, and everybody reproduces the
result. A reply counts for its prompt alone, by key and by the prompt's hash.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.files import digest
from tasks.settings import SettingsError
from tasks.writers._writer import Prompt, Writer, WriterRefused, prompt_hash

__all__ = ["Recorded"]


class Recorded(Writer):
    """A file that answers.

    Args:
        file: JSON lines; each has key, prompt (the SHA-256 of its text), text and teacher.
        licence: of the replies, under the teacher's terms.
    """

    batch = 1024

    def __init__(self, file: str, licence: str):
        path, self.licence, self.replies, teachers = Path(file), licence, {}, set()
        if not path.is_file():
            raise SettingsError(f"{file} is no file; a recorded writer needs the replies, one line of JSON each")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                self.replies[record["key"], record["prompt"]] = str(record["text"])
                teachers.add(record["teacher"])
            except (json.JSONDecodeError, LookupError, TypeError) as error:
                raise SettingsError(f"{file}, line {number}: a record has key, prompt, text and teacher ({error})"
                                    ) from None  # fmt: skip
        if len(teachers) != 1:
            raise SettingsError(f"{file} has replies of {len(teachers)} teachers; a writer is one: split the file")
        self.file, self.teacher = file, f"{teachers.pop()} recorded@{digest(path)[:12]}"

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        found = [self.replies.get((prompt.key, prompt_hash(prompt.text))) for prompt in prompts]
        if absent := [prompt.key for prompt, text in zip(prompts, found, strict=True) if text is None]:
            raise WriterRefused(f"{self.file} has no reply to {len(absent)} of {len(prompts)} prompts, such as "
                                f"{absent[0]}; record them with the same settings")  # fmt: skip
        return [text for text in found if text is not None]
