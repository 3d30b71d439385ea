"""Templates: texts filled in from the prompt's own fields, always the same ones; for tests and demonstrations."""

import hashlib
from collections.abc import Sequence

from tasks.settings import SettingsError
from tasks.writers._writer import Prompt, Writer, WriterRefused, prompt_hash

__all__ = ["Templates"]


class Templates(Writer):
    """Which pattern a prompt gets follows from a hash of its key.

    Args:
        patterns: texts with {field} for the prompt's fields.
        licence: of the patterns.
        seed: another one chooses other patterns.
    """

    batch = 1024

    def __init__(self, patterns: str | Sequence[str], licence: str = "CC0-1.0", seed: int = 0):
        self.patterns = [patterns] if isinstance(patterns, str) else list(patterns)
        if not self.patterns or not all(isinstance(each, str) for each in self.patterns):
            raise SettingsError(f"templates needs patterns, a text or a list of texts; got {patterns!r}")
        self.licence, self.seed = licence, seed
        self.teacher = f"templates@{prompt_hash(repr([self.patterns, seed]))[:12]}"

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        return [self._filled(prompt) for prompt in prompts]

    def _filled(self, prompt: Prompt) -> str:
        number = hashlib.sha256(f"{self.seed} {prompt.key}".encode()).digest()
        pattern = self.patterns[int.from_bytes(number[:8]) % len(self.patterns)]
        try:
            return pattern.format_map(prompt.fields)
        except (KeyError, IndexError, ValueError) as error:
            there = ", ".join(prompt.fields) or "no field"
            raise WriterRefused(f"the pattern {pattern!r} cannot be filled ({error}); the prompt has {there}") from None
