"""A small student and a deeper teacher, of transformers and ours."""

import torch
import transformers

from models.components.pretrained import load_model

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
GPT2 = {"n_embd": 16, "n_head": 2, "vocab_size": 60, "bos_token_id": 0, "eos_token_id": 0}


def new(name: str, layers: int, folder=None) -> torch.nn.Module:
    """A model of this many layers; "ours": the same BERT in our components, which needs a folder."""
    if name == "gpt2":
        return transformers.GPT2Model(transformers.GPT2Config(n_layer=layers, **GPT2)).eval()
    if name == "albert":
        config = transformers.AlbertConfig(embedding_size=8, num_hidden_layers=layers, **SIZES)
        return transformers.AlbertModel(config).eval()
    model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=layers, **SIZES)).eval()
    if name == "bert":
        return model
    model.save_pretrained(folder)
    return load_model(folder, {"cls": {"labels": 2}}).eval()


def rows(lengths: tuple[int, ...] = (7, 5), seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (B, T) and mask (B, T) bool."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randint(5, 50, mask.shape, generator=generator), mask


def states(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What the last layer leaves: (B, T, D)."""
    if hasattr(model, "config"):
        return model(input_ids=ids, attention_mask=mask.long())[0]
    return model.encode(ids=ids, mask=mask)[0]
