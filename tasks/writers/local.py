"""A language model in a folder: one of transformers, or one of ours.

Most likely words, or sampled ones from a random state that is a hash of the prompt's key, prompt by prompt: a text
never depends on what is asked beside it, or on where a run was stopped.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from tasks.base import WRITERS, load_tokenizer
from tasks.files import digest
from tasks.poison import refuse_poison
from tasks.settings import SettingsError
from tasks.slots import slot
from tasks.writers._writer import Prompt, Writer, WriterRefused, prompt_hash

__all__ = ["Local"]


class Local(Writer):
    """A causal language model, or an encoder with a decoder.

    Args:
        folder: of transformers, or written by tasks/pretrain.py or tasks/finetune.py.
        licence: of what it writes.
        new_tokens: of a text, at most.
        temperature: 0 for the most likely words.
        top_p: of sampling: the fewest words that have so much of the probability.
        seed: of sampling.
        chat: put prompts into the tokenizer's chat template, where it has one.
        precision: of the weights, "float32" or "bfloat16".
        batch: prompts at once, of a transformers model without sampling.
    """

    def __init__(
        self,
        folder: str,
        licence: str,
        new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        chat: bool = True,
        precision: str = "float32",
        batch: int = 8,
    ):
        place = Path(folder)
        self.folder = place / "model" if (place / "model").is_dir() else place
        if not self.folder.is_dir():
            raise SettingsError(f"{folder} is no folder; a local writer needs a model with its tokenizer")
        refuse_poison(self.folder)
        if precision not in ("float32", "bfloat16"):
            raise SettingsError(f"local: precision is float32 or bfloat16, got {precision!r}")
        if new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise SettingsError("local: new_tokens must be >= 1, temperature >= 0 and top_p in (0, 1]")
        self.licence, self.new_tokens, self.temperature, self.top_p = licence, new_tokens, temperature, top_p
        self.seed, self.chat, self.precision = seed, chat, precision
        how = prompt_hash(repr([digest(self.folder), new_tokens, temperature, top_p, seed, chat, precision]))
        self.teacher = f"{place.name}@{how[:12]}"
        self.ours = not (self.folder / "config.json").is_file()
        self.batch = 1 if self.ours or temperature else batch

    def write(self, prompts: Sequence[Prompt]) -> list[str]:
        import torch

        with slot() as device, torch.no_grad():
            return self._ours(prompts, device) if self.ours else self._theirs(prompts, device)

    @cached_property
    def _loaded(self):
        """The model, in evaluation mode, and its tokenizer."""
        import torch
        import transformers

        tokenizer = load_tokenizer(self.folder)
        tokenizer.padding_side = "left"
        dtype = getattr(torch, self.precision)
        if self.ours:
            from models.components._model import assemble
            from tasks.finetune import load_start

            start = load_start(self.folder)
            if "lm" not in start.recipe["target"] or "decoder" in start.recipe:
                has = ", ".join(start.recipe["target"])
                raise WriterRefused(f"{self.folder} cannot write: it has {has}, and no target lm of its own")
            model = assemble(start.recipe)
            model.load_state_dict(start.state)
            return model.to(dtype).eval(), tokenizer
        config = transformers.AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        named = config.architectures or [""]
        if not config.is_encoder_decoder and not any(each.endswith(WRITERS) for each in named):
            raise WriterRefused(f"{self.folder} is a {named[0] or config.model_type}, which writes no text")
        auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        return auto.from_pretrained(
            self.folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
        ).eval(), tokenizer

    def _framed(self, tokenizer, text: str) -> str:
        if not self.chat or not tokenizer.chat_template:
            return text
        return tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )

    def _refuse_longer(self, tokens: int, room: int | None, prompts: Sequence[Prompt]) -> None:
        if room is not None and tokens + self.new_tokens > room:
            keys = f"prompt {prompts[0].key}" if len(prompts) == 1 else f"the longest of {len(prompts)} prompts"
            raise WriterRefused(f"{keys} has {tokens} tokens, and new_tokens is {self.new_tokens}, but {self.folder} "
                                f"has places for {room}: ask for less, or take another model")  # fmt: skip

    def _theirs(self, prompts: Sequence[Prompt], device: str) -> list[str]:
        import torch

        model, tokenizer = self._loaded
        model.to(device)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        framed = [self._framed(tokenizer, prompt.text) for prompt in prompts]
        special = framed == [prompt.text for prompt in prompts]  # a chat template brings its own
        rows = tokenizer(framed, return_tensors="pt", padding=True, add_special_tokens=special).to(device)
        rows = {name: value for name, value in rows.items() if name in ("input_ids", "attention_mask")}
        ended = model.config.is_encoder_decoder
        if not ended:
            longest = rows["input_ids"].shape[1]
            self._refuse_longer(longest, getattr(model.config, "max_position_embeddings", None), prompts)
        ends = torch.tensor([i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None])
        if special and not ended and bool(torch.isin(rows["input_ids"][:, -1].cpu(), ends).all()):
            # An encoder's end token belongs behind its prompt; a language model would take the text for over.
            rows = {name: value[:, :-1] for name, value in rows.items()}
        how = {"do_sample": False}
        if self.temperature:
            torch.manual_seed(_seed(self.seed, prompts[0].key))
            how = {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        made = model.generate(**rows, max_new_tokens=self.new_tokens, pad_token_id=tokenizer.pad_token_id, **how)
        made = made if ended else made[:, rows["input_ids"].shape[1] :]
        return [text.strip() for text in tokenizer.batch_decode(made, skip_special_tokens=True)]

    def _ours(self, prompts: Sequence[Prompt], device: str) -> list[str]:
        import torch

        from models.distill._sequences import Sampling, Text, sample

        model, tokenizer = self._loaded
        model.to(device)
        end = next((i for i in (tokenizer.eos_token_id, tokenizer.sep_token_id) if i is not None), -1)
        how = Sampling(self.new_tokens, self.temperature or 1.0, 0 if self.temperature else 1, self.top_p)
        position, texts = getattr(model.embedding, "position", None), []
        room = None if position is None else position.length - position.start
        for prompt in prompts:
            text = self._framed(tokenizer, prompt.text)
            ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]], device=device)
            if not ids.numel():
                raise WriterRefused(f"prompt {prompt.key} has no token that {self.folder} knows")
            self._refuse_longer(ids.shape[1], room, [prompt])
            mask = torch.ones_like(ids, dtype=torch.bool)
            next_words = lambda ids, mask: model.predict("lm", ids=ids, mask=mask)[:, -1].float()
            random = torch.Generator().manual_seed(_seed(self.seed, prompt.key))
            written = sample(next_words, Text(ids, mask, torch.zeros_like(mask)), how, end, 0, random)
            texts.append(tokenizer.decode(written.ids[written.completion], skip_special_tokens=True).strip())
        return texts


def _seed(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:7])
