"""A model recipe: one YAML file, a size and overrides become one checked, hashed description of a model.

    python -m tasks.recipes bert base encoder.transformer.layers=3 --dropout 0.0

prints the resolved recipe and how many parameters it has. `key=value`, `--key value` and `--key=value` mean the same.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import signature
from pathlib import Path

import yaml

from models import method, names

__all__ = ["Recipe", "RecipeError", "parse_overrides", "read_recipe", "recipe_names", "size_names"]

FOLDER = Path(__file__).parents[1] / "models" / "components" / "recipes"
FAMILIES = {  # key of a model -> the folder its parts come from
    "embedding": "embedding",
    "encoder": "encoder",
    "target_embedding": "embedding",
    "decoder": "decoder",
    "target": "target",
}
ONE = ("encoder", "decoder", "processor")  # hold one part: another name replaces it instead of standing beside it
STREAMS = ("first", "second")  # of a dual embedding or encoder: each is a small model of its own
OWN = ("tie", "share", "std", "widths")  # read by the assembly, or by streams
FILE = ("model", "processor", "transformers", "sizes")


class RecipeError(ValueError):
    """A recipe, a size or an override that cannot be: names what is there."""


@dataclass(frozen=True)
class Recipe:
    """What to build: `model` is the mapping that `assemble` takes, `processor` one name with its settings."""

    name: str
    model: dict
    processor: dict
    transformers: str | None  # family in models/components/pretrained; None where transformers has no such model
    digest: str  # SHA-256 of all the above but the name: equal descriptions have equal digests


def recipe_names() -> list[str]:
    """All recipes, read from the folder."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def size_names(name: str) -> list[str]:
    """The sizes of a recipe, in the order of the file."""
    return list(_load(name)["sizes"])


def read_recipe(
    name: str,
    size: str | None = None,
    overrides: Mapping | Sequence[str] | None = None,
    vocabulary: int | None = None,
) -> Recipe:
    """Resolve a recipe: its file, then a size, then overrides, then the vocabulary of the tokenizer at hand.

    Mappings merge key by key; `null` takes a key out. `encoder`, `decoder` and `processor` hold one part each, so
    another name replaces the part and its settings.

    Args:
        name: a file of models/components/recipes, without `.yaml`.
        size: an entry of its `sizes`; None is the model as the file gives it.
        overrides: changes to the model, nested or with dotted keys (`encoder.transformer.layers`); keys that begin
            with `processor` change the processor. A list of words is read as by `parse_overrides`.
        vocabulary: tokens of the tokenizer; `codes` of the processor stand behind them as words of images. A model
            that reads no words has none, and keeps none.

    Raises:
        RecipeError: an unknown recipe, size, part or key (names the closest one), or a number that YAML reads as text.
    """
    file = _load(name)
    given = parse_overrides(overrides) if isinstance(overrides, (list, tuple)) else _nest(overrides or {})
    model, processor = file["model"], file["processor"]
    if size is not None:
        chosen = file["sizes"][_known(size, file["sizes"], f"recipe {name}", "size")]
        model, processor = _over(model, processor, chosen)
    _check_model(model, {key: value for key, value in given.items() if key != "processor"}, name)
    model, processor = _over(model, processor, given)
    if vocabulary is not None and "vocabulary" in model:
        (settings,) = processor.values() or [{}]
        model["vocabulary"] = vocabulary + ((settings or {}).get("codes") or 0)
    resolved = {"model": model, "processor": processor, "transformers": file.get("transformers")}
    _check_numbers(resolved, name)
    canonical = json.dumps(resolved, sort_keys=True, separators=(",", ":"))
    return Recipe(name, **resolved, digest=hashlib.sha256(canonical.encode()).hexdigest())


def parse_overrides(words: Iterable[str]) -> dict:
    """`key=value`, `--key value` and `--key=value` as a nested mapping; values are read as YAML reads them.

    Raises:
        RecipeError: a key without a value, a value without a key, or a key given twice.

    >>> parse_overrides(["--dropout", "0.0", "encoder.transformer.layers=3", "--eps=1e-6"])
    {'dropout': 0.0, 'encoder': {'transformer': {'layers': 3}}, 'eps': 1e-06}
    """
    pairs, words = {}, list(words)
    while words:
        word = words.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--"):
                raise RecipeError(f"{word!r} has no key; write key={word} or --key {word}")
            if not words or words[0].startswith("--"):
                raise RecipeError(f"{word} has no value; write {word} value or {key}=value")
            value = words.pop(0)
        if not key:
            raise RecipeError(f"{word!r} has no key before its value")
        if key in pairs:
            raise RecipeError(f"{key} is given twice, as {pairs[key]!r} and {value!r}; leave one out")
        pairs[key] = _value(value)
    return _nest(pairs)


def _over(model: Mapping, processor: Mapping, changes: Mapping) -> tuple[dict, dict]:
    merged = _merge({**model, "processor": processor}, changes)
    return {key: value for key, value in merged.items() if key != "processor"}, merged["processor"]


def _load(name: str) -> dict:
    path = FOLDER / f"{_known(name, recipe_names(), 'models/components/recipes', 'recipe')}.yaml"
    file = yaml.safe_load(path.read_text())
    for key in file:
        _known(key, FILE, f"recipe {name}", "key")
    return {"sizes": {}, "processor": {}} | file


def _known(name: str, known: Iterable[str], where: str, what: str) -> str:
    known = [str(each) for each in known]
    if name not in known:
        close = ", ".join(get_close_matches(str(name), known, n=3) or known) or "none"
        raise RecipeError(f"{where} has no {what} {name!r}; closest: {close}")
    return name


def _value(text: str):
    """YAML's reading, but 1e-6 is a number, as everywhere else."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _nest(pairs: Mapping) -> dict:
    """Dotted keys become mappings; what names the same place twice is refused."""
    nested = {}
    for key, value in pairs.items():
        first, _, rest = str(key).partition(".")
        value = _nest({rest: value}) if rest else _nest(value) if isinstance(value, Mapping) else value
        both = isinstance(nested.get(first), dict) and isinstance(value, dict)
        if first in nested and not both:
            raise RecipeError(f"override {key} says again what {first!r} has said; leave one out")
        nested[first] = _merge(nested[first], value, replace=False) if both else value
    return nested


def _merge(base: Mapping, over: Mapping, one: bool = False, replace: bool = True, family: str = "") -> dict:
    """`over` over `base`, both untouched; `one`: `base` holds one part, and another name takes its place."""
    kept = base if not (one and over and not set(over) & set(base)) else {}
    merged = deepcopy(dict(kept))
    for key, value in over.items():
        inside = key if key in FAMILIES else family
        alone = replace and (key in ONE or (key in STREAMS and family == "encoder"))
        if value is None and replace:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            old = merged.get(key)
            merged[key] = _merge(old if isinstance(old, Mapping) else {}, value, alone, replace, inside)
        else:
            merged[key] = deepcopy(value)
    return merged


def _check_model(model: Mapping, given: Mapping, name: str) -> None:
    """Refuse an override that no part could read; what the values mean is for the assembly to judge."""
    merged = _merge(model, given)
    facts = set(model) | set(OWN) | set(FAMILIES)
    for family, folder in FAMILIES.items():
        section = merged.get(family) or {}
        if not isinstance(section, Mapping):
            raise RecipeError(
                f"recipe {name}: {family} is a part with its settings, such as {family}.lstm={{}}; got {section!r}"
            )
        for part in _parts(section):
            facts |= _settings(folder, _known(part, names(f"components.{folder}"), f"recipe {name}", family))
    for key, value in given.items():
        _known(key, sorted(facts), f"recipe {name}", "key")
        if key in FAMILIES and isinstance(value, Mapping):
            for part, settings in value.items():
                accepted = sorted(_settings(FAMILIES[key], part)) if isinstance(settings, Mapping) else ()
                for setting in settings if isinstance(settings, Mapping) else ():
                    _known(setting, accepted, f"recipe {name}: {key} {part}", "setting")


def _parts(section: Mapping) -> set[str]:
    """Names of a section's parts, and of those inside its streams."""
    parts = {part for part, settings in section.items() if isinstance(settings, Mapping)}
    streams = (section["dual"].get(stream) for stream in STREAMS) if "dual" in parts else ()
    return parts.union(*(_parts(stream) for stream in streams if isinstance(stream, Mapping)))


def _settings(folder: str, part: str) -> set[str]:
    return set(signature(method(f"components.{folder}", part)).parameters)


def _check_numbers(value, name: str, where: str = "") -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_numbers(item, name, f"{where}.{key}" if where else str(key))
    elif isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return
        raise RecipeError(f"recipe {name}: {where} is the text {value!r}; YAML needs a dot in it, as in 1.0e-12")


def main(name: str, *words: str) -> None:
    """Print a resolved recipe and its number of parameters; the second word may be a size."""
    from torch import device

    from models.components._model import assemble

    size = words[0] if words and "=" not in words[0] and not words[0].startswith("--") else None
    recipe = read_recipe(name, size, list(words[size is not None :]))
    with device("meta"):
        parameters = sum(parameter.numel() for parameter in assemble(recipe.model).parameters())
    shown = {"model": recipe.model, "processor": recipe.processor, "transformers": recipe.transformers}
    print(yaml.safe_dump(shown, sort_keys=False, default_flow_style=None, width=120), end="")
    print(f"{name} {size or 'as written'}: {parameters} parameters, digest {recipe.digest}")


if __name__ == "__main__":
    from tasks.command import run

    run(main)
