"""A student that knows fewer words: which are kept, and a tokenizer whose ids are the student's.

The map from dropped to kept words becomes part of the model's tokenizer, in which a dropped piece has the id of its
substitute: the exported model is a plain one, and reads what the teacher reads. words.safetensors beside it says which
of the teacher's ids each of its rows was, `keep` (V',), and the row of each of them, `to_student` (V,).
Source: Tan et al., 2023, arXiv:2306.06625; the map in the tokenizer is ours.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from models.components._closest import refuse_unknown
from models.distill._exact import renumbered
from models.distill._vocabulary import Vocabulary, compress
from tasks.files import read_json, write_json
from tasks.finetune import Start
from tasks.settings import SettingsError
from tasks.shards import Shards

__all__ = ["FILE", "Renumbered", "choose_words", "cut_rows", "renumber"]

KEYS = ("ratio", "multiple", "similarity")
FILE = "words.safetensors"
BLOCK = 1 << 24  # ids counted at a time
KINDS = ("WordPiece", "BPE", "WordLevel")  # of a tokenizer, in which several pieces may have one id


class Renumbered:
    """A source whose rows are in the student's ids."""

    def __init__(self, source, words: Vocabulary):
        self.source, self.words, self.fingerprint = source, words, source.fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, indices) -> dict[str, Tensor]:
        """The rows of these numbers."""
        return renumbered(self.source.rows(indices), self.words.to_student)


def choose_words(chosen: Mapping, tokens: Path, start: Start) -> Vocabulary:
    """Which words a student keeps: special ones, then the most frequent of the training text.

    Args:
        chosen: {ratio, multiple, similarity} of models/distill/_vocabulary.py.
        tokens: folder of tasks/tokens.py.
        start: the teacher, whose embedding says what is read in the place of a dropped word.

    Raises:
        SettingsError: an unknown setting; a kind of tokenizer that cannot have two pieces of one id.
        ValueError: a share out of range, or less than the special words need.
    """
    for key in chosen:
        refuse_unknown("vocabulary", key, KEYS)
    kind = read_json(start.tokenizer / "tokenizer.json")["model"].get("type")
    if kind not in KINDS:
        raise SettingsError(f"a {kind} tokenizer gives each piece an id of its own, so that none can be read as "
                            f"another; a smaller vocabulary needs one of {', '.join(KINDS)}")  # fmt: skip
    table = next(tensor for name, tensor in start.state.items() if name.endswith("word.weight"))
    counts = torch.zeros(len(table), dtype=torch.int64)
    for stream in sorted((tokens / "train").glob("*/manifest.json")):
        ids = Shards.open(stream.parent, verify=False).ids
        for first in range(0, len(ids), BLOCK):
            block = np.asarray(ids[first : first + BLOCK], dtype=np.int64)
            counts += torch.from_numpy(np.bincount(block, minlength=len(table)))
    known = start.vocabulary
    return compress(counts, table, [known.special], words=known.size, **chosen)


def cut_rows(state: Mapping[str, Tensor], words: Vocabulary) -> dict[str, Tensor]:
    """A teacher's state without the rows of dropped words: of the word table, and of the heads that predict words."""
    heads = ("word.weight", "mlm.head.weight", "mlm.head.bias", "lm.head.weight", "lm.head.bias")
    return {name: tensor[words.keep] if name.endswith(heads) else tensor for name, tensor in state.items()}


def renumber(folder: Path, words: Vocabulary) -> None:
    """Give the tokenizer of a folder the student's ids, in place, and leave the map beside it."""
    from safetensors.torch import save_file

    row = [int(number) for number in words.to_student]
    told = read_json(folder / "tokenizer.json")
    told["model"]["vocab"] = {piece: row[place] for piece, place in told["model"]["vocab"].items()}
    for token in told["added_tokens"]:
        token["id"] = row[token["id"]]
    if told.get("padding"):
        told["padding"]["pad_id"] = row[told["padding"]["pad_id"]]
    for step in _steps(told.get("post_processor")):
        for token in (step.get("special_tokens") or {}).values():
            token["ids"] = [row[place] for place in token["ids"]]
        for role in ("sep", "cls"):
            if role in step:
                step[role][1] = row[step[role][1]]
    write_json(folder / "tokenizer.json", told)
    config = folder / "tokenizer_config.json"
    if config.is_file() and "added_tokens_decoder" in (said := read_json(config)):
        tokens = {str(row[int(place)]): token for place, token in said["added_tokens_decoder"].items()}
        write_json(config, said | {"added_tokens_decoder": tokens})
    save_file({"keep": words.keep, "to_student": words.to_student}, folder / FILE)


def _steps(processor: Mapping | None) -> list[dict]:
    """A post-processor, or the parts of a sequence of them."""
    if not processor:
        return []
    return list(processor["processors"]) if processor.get("type") == "Sequence" else [processor]
