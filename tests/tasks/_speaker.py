"""Folders of small causal language models with a tokenizer of their own, in transformers' layout."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = 'Answer: 1. "red bike" 2. "blue car" Name some months.\nJanuary February March April May June\n### Way 1: *'
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(words: int = 320, chat: bool = False):
    """Byte-level BPE of every byte and a few words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    special = ["<eos>", "<pad>", "<|reserved_1|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT] * 4, trainers.BpeTrainer(vocab_size=words, special_tokens=special,
                             initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<pad>")
    if chat:
        wrapped.chat_template = CHAT
    return wrapped


def speaker(folder: Path, seed: int = 0, chat: bool = False, kind: str = "gpt2", **settings) -> Path:
    """A random model below `folder`, with places for 256 tokens; its table has 5 rows more than words."""
    words = tokenizer(chat=chat)
    torch.manual_seed(seed)
    size = len(words) + 5
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=size, n_positions=256, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0, **settings
        ))  # fmt: skip
    else:
        config = getattr(transformers, f"{kind}Config")(
            vocab_size=size, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, **settings,
        )  # fmt: skip
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    with torch.no_grad():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
