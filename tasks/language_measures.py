"""What one language model knows of several languages: perplexity, tokens per character, retrieval, multiple choice.

Perplexities are per token and per character: two tokenizers cut one text into other tokens, but not into other
characters. A character that a tokenizer has no piece for costs as much as a guess among all of Unicode; otherwise the
model that knows fewer characters would seem the better one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.language._causal import Causal
from models.language._likelihood import Asked, likelihoods
from models.language.choices import Choices
from models.language.probe import Probe
from tasks.base import load_causal, load_tokenizer
from tasks.question_prompts import Question, prompts
from tasks.settings import SettingsError

__all__ = ["Measured", "open_measured"]

UNICODE = math.log(0x110000)  # nats of a character that has no token
LONGEST = 1024  # tokens that are read at once where a model could read more


@dataclass(frozen=True)
class Measured:
    """A model that is asked about texts.

    Args:
        causal: in evaluation mode.
        tokenizer: of transformers, with offsets.
        length: tokens that are read at once.
        batch: rows at a time; changes no answer.
    """

    causal: Causal
    tokenizer: object
    length: int
    batch: int

    @property
    def start(self) -> int:
        """The token that every text begins with, so that its first own token has a probability as well."""
        roles = (getattr(self.tokenizer, f"{role}_token_id") for role in ("bos", "cls", "eos"))
        found = next((token for token in roles if token is not None), None)
        if found is None:
            raise SettingsError("the tokenizer has no token that begins or ends a text (bos, cls, eos), so nothing "
                                "comes before a text's first token; give it one")  # fmt: skip
        return found

    def perplexity(self, texts: Sequence[str]) -> dict[str, float]:
        """Of texts of one language, each read in windows of `length` tokens.

        Returns:
            perplexity (per token), character_perplexity, bits_per_character, tokens_per_character, unknown (the share
            of characters without a token), characters.
        """
        asked, unknown, tokens, characters = [], 0, 0, sum(map(len, texts))
        missing = self.tokenizer.unk_token_id
        for text in texts:
            found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids = found["input_ids"]
            if missing is not None and missing in ids:
                spans = [span for token, span in zip(ids, found["offset_mapping"], strict=True) if token == missing]
                unknown += sum(stop - start for start, stop in spans)
            tokens += len(ids)
            asked += [Asked([self.start], [ids[at : at + self.length]]) for at in range(0, len(ids), self.length)]
        if not tokens:
            raise SettingsError("the texts have no token; a perplexity needs some")
        nats = -sum(float(part.sum()) for part in likelihoods(self.causal, asked, self.length, self.batch))
        each = (nats + unknown * UNICODE) / characters
        return {
            "perplexity": math.exp(nats / tokens),
            "character_perplexity": math.exp(each),
            "bits_per_character": each / math.log(2),
            "tokens_per_character": tokens / characters,
            "unknown": unknown / characters,
            "characters": characters,
        }

    def retrieval(self, first: Sequence[str], second: Sequence[str]) -> list[list[list[float]]]:
        """Accuracy@1 of sentences and their translations by layer, there and back; then the same centred."""
        ids = [[self._ids(text) for text in texts] for texts in (first, second)]
        return [found.tolist() for found in Probe(self.causal, self.length, self.batch).retrieval(*ids)]

    def answers(self, questions: Sequence[Question], form: str, shots: int) -> tuple[list[int], int]:
        """The place of the option that is chosen for each question, and how many got fewer shots than asked for.

        Args:
            questions: with their own examples.
            form: letter or text, see models/language/choices.py.
            shots: examples before each question, fewer where they do not fit.
        """
        asked, fewer = [], 0
        for question in questions:
            for given in prompts(question, form, shots):
                one = self._asked(given.before, given.options)
                if self._size(one) <= self.length:
                    break
            else:
                one = self._cut(one)
            fewer += given.shots < min(shots, len(question.examples))
            asked.append(one)
        sizes = [[len(option) for option in question.options] for question in questions] if form == "text" else None
        return Choices(self.causal, self.length, self.batch).answers(asked, sizes), fewer

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _asked(self, before: str, options: Sequence[str]) -> Asked:
        """As the tokenizer cuts prompt and option together: their border may lie inside a token."""
        alone, joint = self._ids(before), [self._ids(before + option) for option in options]
        same = len(alone)
        for ids in joint:
            shared = next((n for n, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), len(ids))
            same = min(same, shared, len(ids) - 1)
        return Asked([self.start, *alone[:same]], [ids[same:] for ids in joint])

    def _size(self, asked: Asked) -> int:
        return len(asked.before) + max(map(len, asked.options)) - 1

    def _cut(self, asked: Asked) -> Asked:
        """The end of a context that is too long even without an example."""
        room = self.length - max(map(len, asked.options))
        if room < 1:
            longest = max(map(len, asked.options))
            raise SettingsError(f"an option has {longest} tokens, but the model reads {self.length} at once; raise "
                                "`length`, or leave the benchmark out")  # fmt: skip
        return Asked([self.start, *asked.before[-room:]], asked.options)


def open_measured(folder: Path, length: int | None, batch: int, device: str) -> Measured:
    """Open the model and tokenizer of a folder in transformers' layout.

    Args:
        length: tokens to read at once; None for as many as the model has positions, at most 1024.

    Raises:
        PoisonedFolder: it could run code when read.
        SettingsError: it writes no text, or cannot read so many tokens.
    """
    model, tokenizer = load_causal(folder), load_tokenizer(folder)
    places = next((getattr(model.config, key) for key in ("max_position_embeddings", "n_positions")
                   if getattr(model.config, key, None)), LONGEST)  # fmt: skip
    if length is not None and length > places:
        raise SettingsError(f"length is {length}, but {folder} has {places} positions; lower it")
    return Measured(Causal(model.to(device).eval()).eval(), tokenizer, length or min(places, LONGEST), batch)
