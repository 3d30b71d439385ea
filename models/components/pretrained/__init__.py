"""Checkpoints of transformers, one file a family: from config.json and model.safetensors to our models and back.

    recipe, state = load(folder)            # of any checkpoint that save_pretrained wrote
    model = load_model(folder)
    save(model, recipe, folder, "bert")     # AutoModel.from_pretrained(folder) reads it

Tensors are moved, never computed with: both ways together are exact. Nothing is loaded that the model does not use, and
nothing left to chance that the file lacks; what is tied, and what a file says twice, is told by `read`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models import method, names
from models.components._model import Model, assemble
from models.components.pretrained._family import Facts, Family
from models.components.pretrained._files import CheckpointRejected, read_config, read_tensors, write
from models.components.pretrained._names import Rule

__all__ = ["CheckpointRejected", "Loaded", "families", "load", "load_model", "read", "save"]

PROBE = {"cls": {}}  # stands in for the targets of a checkpoint that has none


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in our terms; as a string, one line that says what became of it."""

    family: str
    recipe: dict
    state: dict[str, Tensor]  # complete: tied names are there twice, with one tensor
    tied: tuple[tuple[str, str], ...]  # the first of the names, and another of the same tensor
    left: tuple[str, ...]  # names of the file that no part reads

    def __str__(self) -> str:
        tied = ", ".join(f"{name} = {first}" for first, name in self.tied) or "nothing"
        left = ", ".join(self.left) or "nothing"
        return f"{self.family}: {len(self.state) - len(self.tied)} tensors; tied: {tied}; left out: {left}"


def families() -> dict[str, tuple[str, ...]]:
    """Families by name, with the values of model_type that they read."""
    return {name: method("components.pretrained", name).kinds for name in names("components.pretrained")}


def load(folder: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """The recipe and the state of a checkpoint; see `read`."""
    loaded = read(folder)
    return loaded.recipe, loaded.state


def load_model(folder: str | Path, target: Mapping | None = None) -> Model:
    """The model of a checkpoint in float32, in evaluation mode.

    Args:
        target: targets by name instead of the checkpoint's. Those that it has too keep their weights, except tensors of
            another shape; the pooler that a sentence-prediction head leaves behind goes to a head with a tanh layer;
            all others begin anew.

    Raises:
        CheckpointRejected: see `read`; a checkpoint without a head, and no target.
    """
    loaded = read(folder)
    if target is None and not loaded.recipe["target"]:
        raise CheckpointRejected(
            f"{folder} is a {loaded.family} without a head; give it one: load_model(folder, target=...)"
        )
    if target is None:
        model, state = assemble(loaded.recipe), loaded.state
    else:
        model, state = _retargeted(loaded, target)
    model.load_state_dict(state, strict=True)
    return model.eval()


def read(folder: str | Path) -> Loaded:
    """Read a checkpoint, strictly.

    Args:
        folder: config.json and model.safetensors, or shards with their index.

    Raises:
        CheckpointRejected: a family, an architecture or a setting that is not ours; pickled weights; tensors that are
            missing, left over or of another shape than the config says, all of them listed.
    """
    config = read_config(folder)
    name, family = _family_of(config, folder)
    tensors, left = _cleaned(read_tensors(folder), family)
    try:
        recipe = family.recipe(config)
    except KeyError as error:
        raise CheckpointRejected(f"{folder}: config.json of a {name} lacks {error}") from None
    recipe["target"] = family.targets(config, tensors)
    if {"mlm", "lm"} & set(recipe["target"]):
        says = config.get("tie_word_embeddings", family.ties)
        recipe["tie"] = family.head not in tensors and (says or family.ties is None)
    state, unread = _converted(tensors, family.rules(Facts(recipe, config)), folder)
    spare = [key for key in sorted(unread) if re.search(family.spare, key)]
    _refuse_unread(set(unread) - set(spare), folder)
    tied = _completed(recipe, state, folder)
    return Loaded(name, recipe, state, tied, (*left, *spare))


def save(
    model: nn.Module | Mapping[str, Tensor],
    recipe: Mapping,
    folder: str | Path,
    family: str,
    config: Mapping | None = None,
) -> Path:
    """Write config.json and model.safetensors, as transformers' save_pretrained would.

    Args:
        model: assembled from `recipe`, or its state_dict.
        recipe: of the model.
        folder: made if need be; files of these names in it are replaced.
        family: a name of `families()`.
        config: entries of config.json that recipes have no word for, such as eos_token_id and id2label.

    Returns:
        The folder.

    Raises:
        LookupError: no such family.
        CheckpointRejected: transformers has no such model; names what is different. Nothing is written.
    """
    known: Family = method("components.pretrained", family)()
    facts, config = Facts(recipe, config), dict(config or {})
    architecture = known.architecture(facts)
    try:
        told = _merged(known.config(facts), config)
        told |= {"model_type": known.kinds[0], "architectures": [architecture]}
    except KeyError as error:
        raise CheckpointRejected(f"the recipe has no {error}, which a {family} of transformers has") from None
    _refuse_other(known, facts, told, family)
    tensors = _exported(model, known.rules(facts), family)
    if not facts.tied:  # then transformers does not tie a head's bias either, and reads the second of its names
        tensors |= {
            again: tensors[name].clone()
            for again, name in known.twice.items()
            if name.endswith("bias") and name in tensors
        }
    if architecture == known.bare:
        tensors = {name.removeprefix(f"{known.prefix}."): tensor for name, tensor in tensors.items()}
    dtype = next(iter(tensors.values())).dtype
    write(folder, told | {"dtype": str(dtype).removeprefix("torch.")}, tensors)
    return Path(folder)


def _merged(config: Mapping, told: Mapping) -> dict:
    """A config with the told entries, also inside its text_config and vision_config."""
    merged = dict(config) | told
    for name in ("text_config", "vision_config"):
        if name in config and name in told:
            merged[name] = config[name] | told[name]
    return merged


def _family_of(config: Mapping, folder: str | Path) -> tuple[str, Family]:
    kind = config.get("model_type")
    for name, kinds in families().items():
        if kind in kinds:
            return name, method("components.pretrained", name)()
    known = ", ".join(kind for kinds in families().values() for kind in kinds)
    raise CheckpointRejected(f"{folder} is a model of type {kind!r}; those that convert are: {known}")


def _cleaned(tensors: Mapping[str, Tensor], family: Family) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under the names of a model with a head, without buffers and repetitions, and what was dropped."""
    left = [name for name in tensors if re.search(family.buffers, name)]
    clean = {}
    for name in set(tensors) - set(left):
        # as files converted from TensorFlow name a norm's parameters
        clean[re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))] = tensors[name]
    if family.prefix and not any(name.startswith(f"{family.prefix}.") for name in clean):
        clean = {f"{family.prefix}.{name}": tensor for name, tensor in clean.items()}
    for name, original in {family.head: family.table, **family.twice}.items():
        if name in clean and original in clean and _equal(clean[name], clean[original]):
            del clean[name]
            left.append(f"{name} (the same as {original})")
    return clean, sorted(left)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _converted(
    tensors: Mapping[str, Tensor], rules: list[Rule], folder: str | Path
) -> tuple[dict[str, Tensor], set[str]]:
    """Our state, ties apart, and the names that no rule reads."""
    # what the file only repeats may be absent: it was in some versions of transformers
    rules = [rule for rule in rules if rule.ours or set(rule.theirs) <= set(tensors)]
    wanted = [name for rule in rules for name in rule.theirs]
    if missing := sorted(set(wanted) - set(tensors)):
        raise CheckpointRejected(f"{folder} lacks {_listed(missing)}, which its config.json calls for; fetch it again")
    state = {}
    for rule in rules:
        try:
            state |= zip(rule.ours, rule.here(*(tensors[name] for name in rule.theirs)), strict=True)
        except (ValueError, RuntimeError) as error:
            raise CheckpointRejected(f"{folder}: {', '.join(rule.theirs)}: {error}") from None
    return state, set(tensors) - set(wanted)


def _completed(recipe: Mapping, state: dict[str, Tensor], folder: str | Path) -> tuple[tuple[str, str], ...]:
    """Give tied names their tensor, and refuse a state that is not that of the recipe's model."""
    with torch.device("meta"):
        model = assemble(recipe if recipe["target"] else {**recipe, "target": PROBE})
    tied = model.tied()
    state |= {name: state[first] for first, name in tied if first in state}
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if not recipe["target"]:
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith("targets.")}
    if lost := sorted(set(shapes) ^ set(state)):
        raise CheckpointRejected(f"{folder}: {_listed(lost)}: in the checkpoint or in its recipe's model, not in both")
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {shape}"
        for name, shape in shapes.items()
        if tuple(state[name].shape) != shape
    ]
    if wrong:
        raise CheckpointRejected(f"{folder}: the config.json calls for other shapes: {_listed(wrong)}")
    return tuple(tied)


def _retargeted(loaded: Loaded, target: Mapping) -> tuple[Model, dict[str, Tensor]]:
    recipe = {**loaded.recipe, "target": dict(target)}
    if not {"mlm", "lm"} & set(target):
        recipe.pop("tie", None)
    model = assemble(recipe)
    state = model.state_dict()
    for name, tensor in state.items():
        pooler = re.sub(r"^targets\.\w+\.pool\.", "targets.sp.pool.", name)
        found = loaded.state.get(name, loaded.state.get(pooler))
        if found is not None and found.shape == tensor.shape:
            state[name] = found
    return model, state


def _refuse_unread(names: set[str], folder: str | Path) -> None:
    if names:
        raise CheckpointRejected(
            f"{folder} has {_listed(sorted(names))}, which no part of the model that its config.json describes reads; "
            f"loading the rest would be another model"
        )


def _refuse_other(family: Family, facts: Facts, config: Mapping, name: str) -> None:
    """Refuse a recipe that is not the model which its config.json will describe."""
    theirs = [tensor for rule in family.rules(facts) for tensor in rule.theirs]
    again = family.recipe(config)
    again |= {"target": family.targets(config, theirs), "tie": facts.common("tie", False)}
    ours, there = facts.flat(), Facts(again).flat()
    wrong = [
        f"{key} is {ours.get(key, 'absent')!r} (there {there.get(key, 'absent')!r})"
        for key in sorted(ours.keys() | there.keys())
        if ours.get(key, "absent") != there.get(key, "absent")
    ]
    if wrong:
        raise CheckpointRejected(f"transformers' {name} is another model than this recipe: {_listed(wrong)}")


def _exported(model: nn.Module | Mapping[str, Tensor], rules: list[Rule], family: str) -> dict[str, Tensor]:
    """The file's tensors."""
    state = model.state_dict() if isinstance(model, nn.Module) else model
    wanted = {name for rule in rules for name in rule.ours}
    if missing := sorted(wanted - set(state)):
        raise CheckpointRejected(f"the model lacks {_listed(missing)}; is it that of the recipe?")
    sources = [state[name] for name in wanted]
    homeless = sorted(name for name in set(state) - wanted if not any(_equal(state[name], one) for one in sources))
    if homeless:
        raise CheckpointRejected(f"a {family} of transformers has no place for {_listed(homeless)}")
    return {
        name: tensor
        for rule in rules
        for name, tensor in zip(rule.theirs, rule.back(*(state[name] for name in rule.ours)), strict=True)
    }


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{more}"
