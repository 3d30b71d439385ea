"""Folders of causal language models whose every probability is known: that of a token, whatever stands before it."""

from pathlib import Path

import torch

__all__ = ["BYTES", "guess", "unigram", "words"]

BYTES = 257  # tokens of the byte tokenizer: each byte, and <s>


def unigram(folder: str | Path, chances: dict[str, float] | None = None, length: int = 512) -> Path:
    """Each token named has its chance, the others share the rest evenly."""
    model, tokenizer = _model(length), _bytes()
    chances = chances or {}
    rest = (1 - sum(chances.values())) / (BYTES - len(chances))
    chance_V = torch.full((BYTES,), rest)
    for token, chance in chances.items():
        chance_V[tokenizer.convert_tokens_to_ids(token)] = chance
    for weight in model.parameters():
        weight.data.zero_()
    model.transformer.ln_f.bias.data[0] = 1.0  # every hidden state is (1, 0, 0, ...)
    model.lm_head.weight.data[:, 0] = chance_V.log()
    return _save(folder, model, tokenizer)


def guess(folder: str | Path, length: int = 512) -> Path:
    """Random weights that look back."""
    torch.manual_seed(0)
    return _save(folder, _model(length), _bytes())


def words(folder: str | Path, *known: str) -> Path:
    """A uniform model whose tokenizer has no token for other words than these."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["[UNK]", "<s>", *known]
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", bos_token="<s>")
    model = _model(64, len(names))
    for weight in model.parameters():
        weight.data.zero_()
    return _save(folder, model, tokenizer)


def _model(length: int, vocabulary: int = BYTES):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": length, "initializer_range": 0.5}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, tie_word_embeddings=False, **sizes)).eval()


def _bytes():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: number for number, token in enumerate([*alphabet, "<s>"])}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>")


def _save(folder: str | Path, model, tokenizer) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
