"""A tuned model at work: texts for instructions, a category of the taxonomy, and how likely an answer is."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from models.language._trie import Trie, search
from models.language.llama_e import LlamaE, answer_loss, row
from tasks.base import load_causal, load_tokenizer, model_of
from tasks.progress import counted

__all__ = ["Author"]


class Author:
    """A causal language model that follows instructions.

    Args:
        folder: of the model, or of the stage that made or noted it, see tasks/base.py.
        template: folder whose tokenizer's chat template is used; None for the model's own.
        device: where it works.
        batch: texts at once. It changes the speed, not a text.
        new_tokens: of a text, at most.
    """

    def __init__(
        self, folder: str | Path, template: str | Path | None = None, device: str = "cpu", batch: int = 16,
        new_tokens: int = 96,
    ):  # fmt: skip
        self.folder = model_of(folder)
        self.tokenizer = load_tokenizer(self.folder)
        framed = self.tokenizer if template is None else load_tokenizer(model_of(template))
        self.template, self.device = framed.chat_template, device
        self.batch, self.new_tokens = batch, new_tokens
        self.model = load_causal(self.folder).to(device).eval()
        self.end = self.tokenizer.eos_token_id or self.tokenizer.sep_token_id
        self.padding = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.end
        self.places = getattr(self.model.config, "max_position_embeddings", None)

    def prompt(self, instruction: str, given: str, shots: Sequence[Mapping] = ()) -> list[int]:
        """Ids of a prompt; shots are exchanges with instruction, input and output that stand before it."""
        if not self.template:
            text = "".join(f"{LlamaE().prompt(s['instruction'], s['input'])}{s['output']}\n\n" for s in shots)
            return self.ids(text + LlamaE().prompt(instruction, given))
        turns = []
        for one in shots:
            turns.append({"role": "user", "content": LlamaE.asked(one["instruction"], one["input"])})
            turns.append({"role": "assistant", "content": one["output"]})
        turns.append({"role": "user", "content": LlamaE.asked(instruction, given)})
        text = self.tokenizer.apply_chat_template(
            turns, chat_template=self.template, tokenize=False, add_generation_prompt=True
        )
        return self.ids(text)

    def fits(self, prompt: Sequence[int]) -> bool:
        """Whether a prompt leaves room for a text."""
        return self.places is None or len(prompt) + self.new_tokens <= self.places

    def write(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        """The most likely words after each prompt; "" for one that does not fit."""
        texts = [""] * len(prompts)
        order = sorted((n for n, one in enumerate(prompts) if self.fits(one)), key=lambda n: len(prompts[n]))
        for first in counted(range(0, len(order), self.batch), "writing", "batch"):
            chosen = order[first : first + self.batch]
            ids, mask = self._left([prompts[n] for n in chosen])
            made = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=self.new_tokens, do_sample=False, num_beams=1,
                eos_token_id=self.end, pad_token_id=self.padding,
            )  # fmt: skip
            for n, text in zip(chosen, made[:, ids.shape[1] :], strict=True):
                texts[n] = self.tokenizer.decode(text, skip_special_tokens=True).strip()
        return texts

    def trie(self, labels: Sequence[str]) -> Trie:
        """The labels by their tokens, as they stand after a prompt.

        Raises:
            ValueError: the tokenizer cannot tell two of them apart; names them.
        """
        return Trie({label: self.ids(label) for label in labels}, self.end)

    def classify(self, prompts: Sequence[Sequence[int]], trie: Trie, beams: int = 4) -> list[str]:
        """A label for each prompt, whatever the model would rather say; the first one for a prompt that is too long."""
        found: list[str] = []
        for first in counted(range(0, len(prompts), self.batch), "classifying", "batch"):
            part = [list(one) for one in prompts[first : first + self.batch]]
            if self.places is not None:
                part = [one[max(0, len(one) + trie.longest - self.places) :] for one in part]
            found += [label for label, _ in search(trie, self._step(part), len(part), beams)]
        return found

    @torch.no_grad()
    def loss(self, prompts: Sequence[Sequence[int]], outputs: Sequence[str]) -> float | None:
        """Nats per token of the outputs and their ends, over all of them; None where no exchange fits."""
        rows = [found for prompt, output in zip(prompts, outputs, strict=True)
                if (found := row(prompt, self.ids(output), None, self.end, self.places or 1 << 30))]  # fmt: skip
        total = count = 0.0
        for first in range(0, len(rows), self.batch):
            part = rows[first : first + self.batch]
            longest = max(len(one["ids"]) for one in part)
            fill = lambda name, value, part=part, longest=longest: torch.tensor(
                [one[name] + [value] * (longest - len(one[name])) for one in part], device=self.device)  # fmt: skip
            label = fill("labels_lm", -100)
            logits = self.model(input_ids=fill("ids", self.padding), use_cache=False).logits.float()
            tokens = int((label != -100).sum())
            total, count = total + float(answer_loss(logits, label)) * tokens, count + tokens
        return total / count if count else None

    def perplexity(self, texts: Sequence[str]) -> float | None:
        """Of texts that stand alone, per token, their first one left out."""
        start = [self.tokenizer.bos_token_id] if self.tokenizer.bos_token_id is not None else []
        ids = [start + self.ids(text) for text in texts if text]
        pairs = [(one[:1], one[1:]) for one in ids if len(one) > 1]
        nats = self.loss([prompt for prompt, _ in pairs], [self.tokenizer.decode(rest) for _, rest in pairs])
        return None if nats is None else float(torch.tensor(nats).exp())

    def ids(self, text: str) -> list[int]:
        """Of a text, without special tokens of the tokenizer's own."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _left(self, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Padding stands in front, so that every text begins at the row's end."""
        longest = max(map(len, prompts))
        ids = [[self.padding] * (longest - len(one)) + list(one) for one in prompts]
        mask = [[0] * (longest - len(one)) + [1] * len(one) for one in prompts]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _step(self, prompts: Sequence[Sequence[int]]) -> Callable[[list[int], list[tuple[int, ...]]], Tensor]:
        @torch.no_grad()
        def step(rows: list[int], paths: list[tuple[int, ...]]) -> Tensor:
            parts = []
            for first in range(0, len(rows), self.batch):
                chosen = range(first, min(first + self.batch, len(rows)))
                ids, mask = self._left([[*prompts[rows[n]], *paths[n]] for n in chosen])
                places = (mask.cumsum(-1) - 1).clamp(min=0)
                given = {"position_ids": places} if self._takes_places else {}
                out = self.model(input_ids=ids, attention_mask=mask, use_cache=False, **given)
                parts.append(out.logits[:, -1].float())
            return torch.cat(parts)

        return step

    @cached_property
    def _takes_places(self) -> bool:
        from inspect import signature

        return "position_ids" in signature(self.model.forward).parameters
