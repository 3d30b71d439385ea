"""The folder of a causal language model, opened to decode from: its reader, and its tokenizer as decoding sees it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from models.language._reader import Reader, TooLong
from models.language.icn import Task, Tokens
from tasks import flavor
from tasks.base import load_causal, load_tokenizer, model_of
from tasks.settings import SettingsError

__all__ = ["Opened", "open_causal", "prompt_ids", "refuse_longer", "tokens_of"]

RESERVED = re.compile(r"^[<\[(]\W*(unused|reserved|extra_id|pad)\w*\W*[>\])]$", re.IGNORECASE)


@dataclass(frozen=True)
class Opened:
    """A model that is ready to be asked.

    Args:
        tokenizer: of transformers.
        folder: its files.
        content: SHA-256 of them.
    """

    reader: Reader
    tokens: Tokens
    tokenizer: object
    folder: Path
    content: str

    def kept(self) -> torch.Tensor:
        """(V,) bool: keys of tokens that may begin an answer; padded, special and reserved rows are none."""
        kept = torch.zeros(len(self.reader.head.weight), dtype=torch.bool)
        kept[: len(self.tokens.texts)] = True
        kept[[token for token in self.tokens.hidden | self.tokens.ends if token < len(kept)]] = False
        return kept


def open_causal(folder: str | Path, device: str = "cpu", precision: str = "float32") -> Opened:
    """Open a model's folder, or what a stage wrote it into.

    Raises:
        PoisonedFolder: it could run code when read.
        SettingsError: it writes no text, or has no tokenizer, or `precision` is unknown.
    """
    place = model_of(folder)
    if precision not in ("float32", "bfloat16"):
        raise SettingsError(f"precision is float32 or bfloat16, got {precision!r}")
    if not (place / "tokenizer_config.json").is_file():
        raise SettingsError(f"{place} has no tokenizer beside its model")
    tokenizer, model = load_tokenizer(place), load_causal(place, precision)
    return Opened(Reader(model.to(device)), tokens_of(tokenizer, model), tokenizer, place, flavor.content(place))


def tokens_of(tokenizer, model=None) -> Tokens:
    """A tokenizer of transformers; the model names further tokens that end a text."""
    anchor = tokenizer.encode("a", add_special_tokens=False)
    plain = lambda rows: tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
    (before,) = plain([anchor])
    # behind another token, so that a leading space is seen where the tokenizer marks it otherwise
    whole = plain([[*anchor, token] for token in range(len(tokenizer))])
    texts = [text.removeprefix(before) for text in whole]
    special = set(tokenizer.all_special_ids)
    special |= {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    hidden = special | {token for token, text in enumerate(texts) if not text or RESERVED.match(text.strip())}
    ends = {token for token in (tokenizer.eos_token_id, tokenizer.sep_token_id) if token is not None}
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends |= set(said if isinstance(said, list) else [said] if said is not None else [])

    def encode(text: str) -> list[int]:
        alone = tokenizer.encode(text, add_special_tokens=False)
        if not text:
            return alone
        behind = tokenizer.encode("a" + text, add_special_tokens=False)
        # some tokenizers put a space before whatever stands first
        return behind[len(anchor) :] if behind[: len(anchor)] == anchor else alone

    def decode(ids: Sequence[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    return Tokens(texts, frozenset(ends), frozenset(hidden), encode, decode)


def prompt_ids(tokenizer, prompt: str | Sequence[Mapping], lead: str, chat: bool = True) -> list[int]:
    """Ids of a prompt with an open slot, in one piece.

    Args:
        prompt: a text, or messages {role, content} for the tokenizer's chat template.
        lead: opens the slot.
        chat: put a text into the chat template too, where there is one.

    Raises:
        SettingsError: messages without a chat template, or nothing to begin from.
    """
    if not isinstance(prompt, str) and not tokenizer.chat_template:
        raise SettingsError("prompts are messages, but the tokenizer has no chat template; give texts, or save one")
    if not isinstance(prompt, str) or (chat and tokenizer.chat_template):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(dict, prompt))
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer.encode(text + lead, add_special_tokens=False)
    else:
        ids = tokenizer.encode(prompt + lead)
        # An encoder's end token belongs behind its prompt; a language model would take the text for over.
        if ids and ids[-1] in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            ids = ids[:-1]
    if not ids:
        raise SettingsError("the tokenizer makes no token of a prompt; there is nothing to begin from")
    return ids


def refuse_longer(opened: Opened, asked: Mapping[str, Task], more: int) -> None:
    """Before the first text is written: every prompt has room for so many tokens more.

    Raises:
        TooLong: names how many have not, and one.
    """
    room = opened.reader.room
    long = [key for key, task in asked.items() if room is not None and len(task.prompt) + more > room]
    if long:
        raise TooLong(f"{len(long)} of {len(asked)} prompts, such as {long[0]!r} of {len(asked[long[0]].prompt)} "
                      f"tokens, leave no room for {more} more: {opened.folder} has places for {room}; lower tokens, or "
                      f"shorten them")  # fmt: skip
