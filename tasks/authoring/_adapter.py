"""LoRA on a model of transformers through peft: which layers, how many numbers, saved in peft's layout, merged back."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from models.language.llama_e import LlamaE
from tasks.settings import SettingsError

__all__ = ["adapted", "check_noop", "merged", "sizes", "targets"]

ATTENTION = (  # ends of the names of query, key, value and output, by family
    ("q_proj", "k_proj", "v_proj", "o_proj"),  # LLaMA, Mistral, Qwen, Gemma
    ("attn.c_attn", "attn.c_proj"),  # GPT-2: query, key and value are one
    ("self_attention.query_key_value", "self_attention.dense"),  # BLOOM, Falcon
    ("attention.query_key_value", "attention.dense"),  # GPT-NeoX
    ("qkv_proj", "o_proj"),  # Phi-3
    ("q_proj", "k_proj", "v_proj", "out_proj"),  # OPT, GPT-J, GPT-Neo
)


def targets(model: nn.Module, method: LlamaE) -> list[str]:
    """Names of the layers that get an adapter.

    Raises:
        SettingsError: the model has no such layers, or its head shares its weight with the embeddings.
    """
    layers = _linear(model)
    head = next((name for name, part in layers.items() if part is model.get_output_embeddings()), None)
    if method.layers == "all":
        chosen = [name for name in layers if name != head]
    else:
        ends = next((ends for ends in ATTENTION if all(_named(layers, end) for end in ends)), ())
        chosen = [name for name in layers if name != head and any(f".{name}".endswith(f".{end}") for end in ends)]
    if not chosen:
        there = sorted({name.rpartition(".")[2] for name in layers})
        raise SettingsError(f"lora: {type(model).__name__} has no attention layers of a known name; it has "
                            f"{', '.join(there)}; set layers: all")  # fmt: skip
    if method.head:
        if head is None or model.get_output_embeddings().weight is model.get_input_embeddings().weight:
            raise SettingsError(f"lora: the head of {type(model).__name__} shares its weight with the embeddings, so "
                                f"an adapter could not be merged into it; set head: false")  # fmt: skip
        chosen.append(head)
    return chosen


def adapted(model: nn.Module, method: LlamaE, base: str) -> nn.Module:
    """The model with new adapters, all else frozen; peft's own object, so that its folder loads anywhere.

    Args:
        base: what the adapter's configuration calls its model.
    """
    from peft import LoraConfig, get_peft_model

    chosen = targets(model, method)
    config = LoraConfig(
        r=method.rank, lora_alpha=method.alpha, lora_dropout=method.dropout, target_modules=chosen, bias="none",
        task_type="CAUSAL_LM", base_model_name_or_path=base,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), _Conv1D()) for name in chosen),
    )  # fmt: skip
    model.name_or_path = base  # peft writes the model's own name, a path of this machine, over the configuration's
    made = get_peft_model(model, config)
    own = sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)
    wanted = method.trained(sizes(model, chosen))
    if own != wanted:
        raise SettingsError(f"lora: {own:,} numbers would be trained, but the layers need {wanted:,}; a layer is of a "
                            f"kind that peft adapts in another way")  # fmt: skip
    return made


def sizes(model: nn.Module, names: Sequence[str]) -> list[tuple[int, int]]:
    """(inputs, outputs) of layers, with or without adapters."""
    found = []
    for name in names:
        part = model.get_submodule(name)
        part = part.get_base_layer() if hasattr(part, "get_base_layer") else part
        rows, columns = part.weight.shape
        found.append((rows, columns) if isinstance(part, _Conv1D()) else (columns, rows))
    return found


@torch.no_grad()
def check_noop(before: torch.Tensor, model: nn.Module, ids: torch.Tensor) -> None:
    """Refuse a model whose fresh adapters change anything.

    Args:
        before: logits of the model without them.
        ids: (B, T) that gave them.
    """
    was = model.training
    off = (model.eval()(input_ids=ids, use_cache=False).logits - before).abs().max().item()
    model.train(was)
    if off:
        raise SettingsError(f"lora: fresh adapters change the logits by {off:.3g}; they must change nothing")


def merged(model: nn.Module, folder: Path) -> nn.Module:
    """Save the adapters below `folder` and add them to their layers: the plain model that computes the same."""
    model.save_pretrained(folder, save_embedding_layers=False)  # "auto" asks the hub how large the base's table is
    (folder / "README.md").unlink(missing_ok=True)  # a form to fill in, not about this model
    return model.merge_and_unload(safe_merge=True)


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    return {name: part for name, part in model.named_modules() if isinstance(part, (nn.Linear, _Conv1D()))}


def _named(layers: dict[str, nn.Module], end: str) -> bool:
    return any(f".{name}".endswith(f".{end}") for name in layers)


def _Conv1D() -> type:
    from transformers.pytorch_utils import Conv1D

    return Conv1D
