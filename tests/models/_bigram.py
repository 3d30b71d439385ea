"""A causal language model whose every number is known: the next token depends on the last one only, by a table."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from models.language._causal import Causal

__all__ = ["bigram", "small"]


class _Body(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.eye(size), freeze=False)

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, output_hidden_states=False):
        hidden = self.embed(input_ids)
        return SimpleNamespace(last_hidden_state=hidden, hidden_states=(hidden, 2 * hidden))


class _Bigram(nn.Module):
    def __init__(self, chance: Tensor):
        super().__init__()
        self.base_model = _Body(len(chance))
        self.head = nn.Linear(*chance.shape, bias=False)
        self.head.weight.data = chance.log().T.contiguous()
        self.config = SimpleNamespace(_attn_implementation="eager")

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids, **given):
        return SimpleNamespace(logits=self.head(self.base_model(input_ids, **given).last_hidden_state))


def bigram(*chances: list[float]) -> Causal:
    """Row a holds the probabilities of each token after token a."""
    return Causal(_Bigram(torch.tensor(chances))).eval()


def small(vocabulary: int = 50, seed: int = 0, **settings) -> Causal:
    """A random GPT-2 of two layers that looks back."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.5}
    return Causal(GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, **sizes | settings)).eval()).eval()
