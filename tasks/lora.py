"""LoRA through peft: small trained products beside frozen layers, saved as an adapter, merged back into them.

    y = W x + (alpha / rank) B A x,   A drawn, B = 0: nothing changes before the first step

Query and value layers by default, whose widths differ under grouped keys and values. Source: Hu et al., 2021,
arXiv:2106.09685. The adapter's folder loads with `PeftModel.from_pretrained` onto the exported model wherever a layer
is one tensor of transformers; GPT-2 and BLOOM keep query, key and value as one, and get names of ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import method
from models.components.pretrained._family import Facts
from tasks.files import write_json
from tasks.settings import SettingsError, fill

__all__ = ["Lora", "add_lora", "load_adapter", "merge_lora", "save_adapter", "their_names"]

TASKS = {  # class of transformers -> what peft calls it
    "AutoModelForSequenceClassification": "SEQ_CLS",
    "AutoModelForTokenClassification": "TOKEN_CLS",
    "AutoModelForQuestionAnswering": "QUESTION_ANS",
    "AutoModelForCausalLM": "CAUSAL_LM",
    "AutoModelForSeq2SeqLM": "SEQ_2_SEQ_LM",
    "AutoModel": "FEATURE_EXTRACTION",
}


@dataclass(frozen=True)
class Lora:
    """Settings of adapters.

    Args:
        rank: of each product.
        alpha: alpha / rank scales it.
        dropout: of what goes into A.
        layers: last names of the linear layers that get one.
    """

    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    layers: Sequence[str] = ("query", "value")

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> "Lora":
        """Build from params.yaml; a name that is not a setting is refused with the list of those that are."""
        return fill(cls, settings, "lora")


def add_lora(model: nn.Module, settings: Lora, train: str = "") -> list[str]:
    """Put adapters into a model, in place; all else is frozen, except what `train` names.

    Args:
        train: beginning of the names of parameters that are trained as well, such as a new head's.

    Returns:
        Names of the layers that got one.

    Raises:
        SettingsError: the model has no linear layer of these names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    chosen = [name for name in linear if name.rpartition(".")[2] in settings.layers]
    if not chosen:
        there = sorted({name.rpartition(".")[2] for name in linear})
        raise SettingsError(
            f"lora: the model has no layer called {', '.join(settings.layers)}; it has: {', '.join(there)}"
        )
    inject_adapter_in_model(
        LoraConfig(r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=chosen),
        model,
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or bool(train) and name.startswith(train))
    return chosen


def merge_lora(model: nn.Module) -> nn.Module:
    """Add every adapter's product to its layer, W + (alpha / rank) B A, and take the adapters out, in place."""
    for name, layer in _adapted(model).items():
        layer.merge(safe_merge=True)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.get_base_layer())
    return model


def save_adapter(
    model: nn.Module,
    settings: Lora,
    recipe: Mapping,
    family: str | None,
    base: str,
    folder: str | Path,
    loader: str | None,
) -> Path:
    """Write adapter_config.json and adapter_model.safetensors: adapters and the trained head, nothing else.

    Args:
        model: with adapters.
        recipe: of the model.
        family: whose names the tensors get; None for ours.
        base: where the frozen model comes from.
        loader: class of transformers that holds the head.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    adapted, named = _adapted(model), {}
    theirs = their_names(recipe, family) if family else {}
    if not all(f"{name}.weight" in theirs for name in adapted):
        theirs = {}  # layers that transformers fuses have no name of their own
    call = lambda name: theirs.get(name, name) if theirs else name
    tensors: dict[str, Tensor] = {}
    for name, layer in adapted.items():
        named[name] = call(f"{name}.weight").removesuffix(".weight")
        for part in ("A", "B"):
            weight = getattr(layer, f"lora_{part}")["default"].weight
            tensors[f"base_model.model.{named[name]}.lora_{part}.weight"] = weight.detach().clone()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    tensors |= {f"base_model.model.{call(name)}": value.detach().clone() for name, value in trained.items()}
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=sorted(named.values()),
        modules_to_save=sorted({call(name).rpartition(".")[0] for name in trained}) or None,
        task_type=TASKS.get(loader) if theirs else None,
        base_model_name_or_path=base,
        inference_mode=True,
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    write_json(folder / "adapter_config.json", plain)
    return folder


def load_adapter(model: nn.Module, recipe: Mapping, family: str | None, folder: str | Path) -> nn.Module:
    """Read an adapter of `save_adapter` into a model that `add_lora` prepared in the same way.

    Raises:
        ValueError: the adapter lacks a tensor of the model's, or has one too many; names them.
    """
    from safetensors.torch import load_file

    theirs = {there: here for here, there in their_names(recipe, family).items()} if family else {}
    found = {}
    for name, value in load_file(Path(folder) / "adapter_model.safetensors").items():
        name = name.removeprefix("base_model.model.")
        layer, cut, part = name.partition(".lora_")
        if cut:
            ours = theirs.get(f"{layer}.weight", f"{layer}.weight").removesuffix(".weight")
            found[f"{ours}.lora_{part.removesuffix('.weight')}.default.weight"] = value
        else:
            found[theirs.get(name, name)] = value
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if wrong := sorted(wanted ^ set(found)):
        raise ValueError(f"{folder} and the model differ in {len(wrong)} tensors: {', '.join(wrong[:5])}")
    model.load_state_dict(found, strict=False)
    return model


def their_names(recipe: Mapping, family: str) -> dict[str, str]:
    """Our names of tensors -> the names of the same tensors in files of transformers; others are absent."""
    names = {}
    probe = torch.arange(6.0).reshape(2, 3)
    for rule in method("components.pretrained", family)().rules(Facts(recipe)):
        if len(rule.ours) == len(rule.theirs) == 1 and _unmoved(rule, probe):
            names[rule.ours[0]] = rule.theirs[0]
    return names


def _unmoved(rule, probe: Tensor) -> bool:
    """Whether a rule only renames: a turned or a fused matrix is no layer of the same shape."""
    moved = rule.here(probe)
    return len(moved) == 1 and moved[0].shape == probe.shape and torch.equal(moved[0], probe)


def _adapted(model: nn.Module) -> dict[str, nn.Module]:
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
