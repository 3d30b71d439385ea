"""The teacher of a training set: what it is asked for, and templates that stand in where there is no language model.

Templates are a data generator, no model: they fill our patterns (seeds.yaml) with fields of the catalogue and cannot
invent. Whatever they write is marked as theirs.
"""

import re
from collections.abc import Mapping, Sequence

from tasks.authoring._seeds import Seeds, Wording
from tasks.settings import SettingsError
from tasks.writers._writer import Prompt, Writer, open_writer, prompt_hash
from tasks.writers.templates import Templates

__all__ = ["SHOWN", "OurTemplates", "kind_of", "open_teacher", "read_list", "text_prompt", "wording_prompt"]

SHOWN, MORE = 3, 4  # seeds in a prompt, and wordings that it asks for
LANGUAGES = {"en": "English", "zh": "Chinese", "ja": "Japanese"}
ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d+[.):、]|#+)\s*")


class OurTemplates(Writer):
    """Fills the patterns of seeds.yaml for what a prompt asks."""

    batch, licence = 1024, "CC0-1.0"

    def __init__(self, seeds: Seeds, seed: int = 0):
        self.seeds, self.seed = seeds, seed
        self.teacher = f"templates@{prompt_hash(f'{seeds.digest} {seed}')[:12]}"

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: Prompt) -> str:
        asked, language = prompt.fields["asked"], prompt.fields["in"]
        if asked.startswith("wording "):
            patterns = self.seeds.frames(asked.removeprefix("wording "), language)
            if not patterns:
                return ""
            # The n-th prompt of a job gets the n-th of its wordings in an order of the seed's: none comes twice.
            order = sorted(patterns, key=lambda pattern: prompt_hash(f"{self.seed} {pattern}"))
            return order[int(prompt.fields["number"]) % len(order)]
        patterns = self.seeds.texts(asked, language)
        return Templates(patterns, seed=self.seed).write([prompt])[0].strip() if patterns else ""


def open_teacher(chosen: Mapping, seeds: Seeds) -> Writer:
    """The writer of {name: settings}; templates without patterns have ours.

    Raises:
        SettingsError: see tasks/writers.
    """
    if isinstance(chosen, Mapping) and set(chosen) == {"templates"} and "patterns" not in (chosen["templates"] or {}):
        settings = dict(chosen["templates"] or {})
        if unknown := sorted(set(settings) - {"seed"}):
            raise SettingsError(f"writer templates: there is no setting {', '.join(unknown)}; it has: seed, patterns")
        return OurTemplates(seeds, **settings)
    return open_writer(chosen)


def kind_of(chosen: Mapping) -> str:
    """Which of tasks/writers it is: what cards and metrics must say."""
    return next(iter(chosen))


def wording_prompt(wordings: Sequence[Wording], number: int, language: str, seeds: Seeds) -> Prompt:
    """Asks for more instructions like these, which are of one job."""
    job = wordings[0].job
    listed = "\n".join(f"{place}. {wording.text}" for place, wording in enumerate(wordings, 1))
    text = (
        f"These are instructions that people give to an assistant for a marketplace:\n{listed}\nWrite {MORE} more "
        f"instructions in {LANGUAGES.get(language, language)} that ask for the same, each in other words. Words in "
        f"braces stay as they are. Answer with a numbered list and nothing else."
    )
    fields = {"asked": f"wording {job}", "in": language, "number": str(number)}
    return Prompt(f"wording/{wordings[0].task}/{job}/{language}/{number}", text, fields)


def text_prompt(
    key: str, instruction: str, given: str, language: str, asked: str, hint: str, fields: Mapping
) -> Prompt:
    """Asks for an output."""
    text = (
        f"{instruction}\n\n{given}\n\n{hint}Use no fact that is not given above: no brand, price, condition, size, "
        f"colour or material. Answer in {LANGUAGES.get(language, language)}, with the text alone."
    )
    return Prompt(key, text, {**fields, "asked": asked, "in": language})


def read_list(reply: str) -> list[str]:
    """The items of a numbered list, or the lines of a reply without numbers, quotes taken off."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    numbered = [line for line in lines if ITEM.match(line)]
    return [ITEM.sub("", line).strip().strip("\"'“”「」").strip() for line in numbered or lines]
