"""Generation: a text to write after another, by a language model or an encoder with a decoder.

The loss counts the answer's tokens and its end. The best epoch is chosen by the loss; the exported model then writes,
greedily or with beams, through transformers' `generate`.
"""

from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor

from tasks import answers
from tasks.kinds._kind import IGNORED, Example, Kind, Rejected, pad

__all__ = ["Generation"]


class Generation(Kind):
    """Reads text, second where there is one, and label, the text to write.

    Args:
        separator: stands between text and answer of a language model.
        longest: tokens of an answer, its end included; in training longer ones are cut.
        beams: of the search; 1 is greedy.
        batch: texts that are written at once.
    """

    target = "lm"
    metric = "negative_loss"
    reads = ("text", "label")
    answers_in_batches = False

    def __init__(self, texts, rows, facts, separator: str = "\n", longest: int = 48, beams: int = 1, batch: int = 32):
        super().__init__(texts, rows, facts)
        if not (facts["decoder"] or facts["causal"]):
            raise Rejected("this model reads both ways and has no decoder, so it cannot write; choose a language model")
        if not 1 < longest < texts.length:
            raise Rejected(f"longest is {longest} tokens; it must lie between 1 and the length, {texts.length}")
        self.end = facts["end"]
        if self.end is None:
            raise Rejected("the tokenizer has no token for the end of a text (eos or sep), so writing would never stop")
        self.separator, self.longest, self.beams, self.batch = separator, longest, beams, batch

    @property
    def loader(self) -> str:
        return "AutoModelForSeq2SeqLM" if self.facts["decoder"] else "AutoModelForCausalLM"

    def head(self) -> dict:
        return {}

    def encode(self, frame: pl.DataFrame, split: str) -> list[Example]:
        said = self._bare(list(frame["label"]))
        second = frame["second"].fill_null("").to_list()
        asked = [f"{a} {b}".strip() for a, b in zip(frame["text"], second, strict=True)]
        if self.facts["decoder"]:
            prompts = [row["ids"] for row in self.texts.encode([(text,) for text in asked], split)]
        else:
            prompts, between = self._bare(asked), self._bare([self.separator])[0]
            room = self.texts.length - self.longest - len(between) - (self.facts["start"] is not None)
            self.texts.cut[split] += sum(len(prompt) > room for prompt in prompts)
            start = [] if self.facts["start"] is None else [self.facts["start"]]
            prompts = [[*start, *prompt[:room], *between] for prompt in prompts]
        self.texts.cut[split] += sum(len(answer) >= self.longest for answer in said)
        answers = [[*answer[: self.longest - 1], self.end] for answer in said]
        return [{"prompt": prompt, "answer": answer} for prompt, answer in zip(prompts, answers, strict=True)]

    def _bare(self, texts: list[str]) -> list[list[int]]:
        return self.texts.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        if self.facts["decoder"]:
            target = [{"target_ids": [self.facts["decoder_start"], *row["answer"][:-1]]} for row in examples]
            batch = pad([{"ids": row["prompt"]} for row in examples], self.texts.padding)
            batch |= pad(target, self.texts.padding, "target_")
            label = [row["answer"] for row in examples]
        else:
            batch = pad([{"ids": row["prompt"] + row["answer"][:-1]} for row in examples], self.texts.padding)
            label = [[IGNORED] * (len(row["prompt"]) - 1) + row["answer"] for row in examples]
        longest = max(map(len, label))
        return batch | {"labels_lm": torch.tensor([row + [IGNORED] * (longest - len(row)) for row in label])}

    def theirs(self, batch) -> dict[str, Tensor]:
        more = {"decoder_input_ids": batch["target_ids"]} if self.facts["decoder"] else {}
        return super().theirs(batch) | more

    def places(self, batch) -> Tensor:
        return batch["target_mask" if self.facts["decoder"] else "mask"]

    def write(self, model, examples: Sequence[Example]) -> list[str]:
        """What the exported model writes after each prompt."""
        texts = []
        for first in range(0, len(examples), self.batch):
            rows = [row["prompt"] for row in examples[first : first + self.batch]]
            longest = max(map(len, rows))
            # Padding stands in front, so that every answer begins at the row's end.
            ids = torch.tensor([[self.texts.padding] * (longest - len(row)) + row for row in rows])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
            made = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.longest, num_beams=self.beams, do_sample=False,
                eos_token_id=self.end, pad_token_id=self.texts.padding,
            )  # fmt: skip
            made = made if self.facts["decoder"] else made[:, longest:]
            texts += self.texts.tokenizer.batch_decode(made, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def judged(self, frame: pl.DataFrame, said: Sequence[str]) -> tuple[dict, pl.DataFrame]:
        """Metrics of what was written."""
        return answers.texts(said, frame["label"].to_list()), frame.with_columns(predicted=pl.Series(said))
