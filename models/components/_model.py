"""A model is embedding -> encoder -> (target embedding -> decoder) -> target, put together from a recipe.

    hidden = encoder(embedding(batch)), then decoder(target_embedding(batch), hidden) where there is one
    L = sum over targets t of (sum of t's losses) / count_t

Source: Zhao et al., 2023 (TencentPretrain), arXiv:2212.06385.
"""

from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from models import build, method, names
from models.components._closest import refuse_unknown
from models.components._dropout import dropout
from models.components._norm import make_norm
from models.components._rows import Rows

__all__ = ["Embedding", "Model", "Settings", "assemble", "initialise", "refuse_unknown"]

FOLDERS = {"embedding": "embedding", "encoder": "encoder", "target_embedding": "embedding", "decoder": "decoder"}
FOLDERS |= {"target": "target"}
SWITCHES = ("tie", "share")
TWO_WAY = ("birnn", "bilstm", "bigru")
OF_ONE = ("mlm", "lm", "bilm", "sp", "cls", "regression", "tagging", "span", "choice")  # these read one stream


class Settings:
    """Settings of parts, completed by the facts that a recipe states once for all of them.

    Args:
        facts: top-level scalars of a recipe, such as width and dropout.
    """

    def __init__(self, facts: Mapping[str, Any] | None = None):
        self.facts = dict(facts or {})
        self.used = {"std"}

    def complete(self, accepts: type, own: Mapping[str, Any] | None) -> dict[str, Any]:
        """Own settings, and each fact that the signature has and they do not.

        A part that builds parts of its own has a parameter `facts` and gets them all.
        """
        known = list(signature(accepts).parameters)
        self.used |= set(known) & set(self.facts) | (set(self.facts) if "facts" in known else set())
        facts = self.facts | {"facts": self.facts}
        return {name: facts[name] for name in known if name in facts} | dict(own or {})

    def build(self, folder: str, name: str, own: Mapping[str, Any] | None, **more: Any) -> nn.Module:
        """Build models/components/<folder>/<name>.py; `more` are facts of this place.

        Raises:
            LookupError: no such part; a setting it does not have. Both name the closest.
            ValueError: a part cannot be built like that.
        """
        if own is not None and not isinstance(own, Mapping):
            raise ValueError(f"{folder}.{name} needs a mapping of settings, such as {{}}; got {own!r}")
        family = f"components.{folder}"
        accepts = method(family, name)
        known = list(signature(accepts).parameters)
        for key, value in (own or {}).items():
            refuse_unknown(f"{folder}.{name}", key, known)
            _refuse_text_number(f"{folder}.{name}.{key}", value)
        here = Settings(self.facts | more)
        complete = here.complete(accepts, own)
        self.used |= here.used
        missing = [
            key for key, value in signature(accepts).parameters.items()
            if value.default is value.empty and value.kind is value.POSITIONAL_OR_KEYWORD and key not in complete
        ]  # fmt: skip
        if missing:
            raise ValueError(f"{folder}.{name} needs {', '.join(missing)}: give it there or at the top of the recipe")
        try:
            return build(family, name, **complete)
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{folder}.{name}: {error}") from error


def _refuse_text_number(what: str, value: Any) -> None:
    """Raise ValueError for 1e-12, which YAML reads as a text."""
    try:
        number = float(value) if isinstance(value, str) else None
    except ValueError:
        return
    if number is not None:
        raise ValueError(f"{what} is the text {value!r}; write it as YAML reads a number, such as 1.0e-12")


class Embedding(nn.Module):
    """The sum of its parts, then norm, dropout and, from a narrower sum, a projection.

    Args:
        parts: settings by name of a file in models/components/embedding, summed in this order.
        settings: facts for the parts; width is D.
        stem: in front of the batch's fields, such as "target_".
        width: E of the parts (ALBERT's factorised embedding); None for D.
        norm: "layer", "rms", "t5" or "none".
        eps: of the norm.
        dropout: of the sum.
    """

    def __init__(
        self,
        parts: Mapping[str, Mapping[str, Any]],
        settings: Settings,
        stem: str = "",
        width: int | None = None,
        norm: str | None = "layer",
        eps: float = 1e-12,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.stem, self.dropout, self.names = stem, dropout, tuple(parts)
        outer = settings.facts["width"]
        width = width or outer
        for name, own in parts.items():
            self.add_module(name, settings.build("embedding", name, own, width=width))
        self.paired = "dual" in parts
        self.content = next((name for name in parts if hasattr(getattr(self, name), "rows")), None)
        # the waves have entries of size 1, a word's are of size 1 / sqrt(D)
        self.factor = width**0.5 if "sinusoidal" in parts else None
        self.norm = nn.Identity() if self.paired else make_norm(norm, width, eps)
        self.project = nn.Linear(width, outer) if width != outer else None

    def forward(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Rows]:
        """Fields of the batch -> (B, T, D) and what its places are; pairs of both from a dual part."""
        if self.stem:
            batch = {name[len(self.stem) :]: value for name, value in batch.items() if name.startswith(self.stem)}
        rows = getattr(self, self.content).rows(batch, "") if self.content else Rows.read(batch)
        hidden = None
        for name in self.names:
            part = getattr(self, name)(batch, rows, hidden)
            if name == "word" and self.factor:
                part = part * self.factor
            hidden = part if hidden is None else hidden + part
        if self.paired:
            return hidden, rows
        hidden = dropout(self.norm(hidden), self.dropout, self.training)
        return hidden if self.project is None else self.project(hidden), rows


class Model(nn.Module):
    """Five components; parameters are named after them.

    Args:
        embedding: reads the batch.
        encoder: reads the embedding.
        targets: by name; each reads what encoder or decoder leaves.
        target_embedding: reads the batch's `target_` fields, for the decoder.
        decoder: reads the target embedding and what the encoder left.
        std: of initial weights.
    """

    def __init__(
        self,
        embedding: Embedding,
        encoder: nn.Module,
        targets: Mapping[str, nn.Module],
        target_embedding: Embedding | None = None,
        decoder: nn.Module | None = None,
        std: float = 0.02,
    ):
        super().__init__()
        self.embedding, self.encoder = embedding, encoder
        self.target_embedding, self.decoder = target_embedding, decoder
        self.targets, self.std = nn.ModuleDict(targets), std
        self.ties: list[tuple[str, str]] = []

    def encode(self, **batch: Tensor) -> tuple[Tensor, Rows]:
        """What targets read: the encoder's (B, T, D), or the decoder's (B, S, D), and its rows."""
        hidden, rows = self.embedding(batch)
        hidden = self.encoder(hidden, rows)
        if self.decoder is None:
            return hidden, rows
        target, target_rows = self.target_embedding(batch)
        return self.decoder(target, target_rows, hidden, rows), target_rows

    def counts(self, **batch: Tensor) -> dict[str, Tensor]:
        """What each target's summed loss is divided by: labelled tokens or rows of this batch."""
        return {name: target.count(batch) for name, target in self.targets.items()}

    def forward(self, counts: Mapping[str, Tensor] | None = None, **batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms.

        Args:
            counts: of the whole step, which may be more than this batch; None for this batch's own.
            batch: fields, see the parts.

        Returns:
            The sum over targets of their sums / counts, and, detached, each of these by name with what the target tells
            besides, such as mlm_correct. Where nothing is labelled all are 0.
        """
        counts = self.counts(**batch) if counts is None else counts
        hidden, rows = self.encode(**batch)
        loss, terms = 0.0, {}
        for name, target in self.targets.items():
            total, more = target(hidden, rows, batch)
            share = counts[name].clamp(min=1)
            loss = loss + total / share
            terms |= {name: total.detach() / share} | {f"{name}_{key}": x.detach() / share for key, x in more.items()}
        return loss, terms

    def predict(self, target: str, **batch: Tensor) -> Tensor:
        """Logits of a target, at every place it has.

        Raises:
            LookupError: no such target.
        """
        refuse_unknown("this model's targets", target, list(self.targets))
        return self.targets[target].predict(*self.encode(**batch))

    def tied(self) -> list[tuple[str, str]]:
        """Names of parameters that are one: the first name, then the other."""
        first: dict[int, str] = {}
        pairs = []
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if (known := first.setdefault(id(parameter), name)) != name:
                pairs.append((known, name))
        return pairs

    def initialise(self) -> "Model":
        """Draw all weights anew; also what a model built on the meta device calls after to_empty, which unties."""
        for first, other in self.ties:
            owner, _, name = other.rpartition(".")
            setattr(self.get_submodule(owner), name, self.get_parameter(first))
        initialise(self, self.std)
        return self


@torch.no_grad()
def initialise(module: nn.Module, std: float) -> None:
    """Norm weights 1, biases 0, the rest N(0, std), from torch's generator.

    A module with its own `initialise(std)` sees to its own parameters, not to its children's; scalars stay as built.
    """
    seen: set[int] = set()
    for part in module.modules():
        own = [(name, value) for name, value in part.named_parameters(recurse=False) if id(value) not in seen]
        seen |= {id(value) for _, value in own}
        if part is not module and hasattr(part, "initialise"):
            part.initialise(std)
            continue
        for name, value in own:
            if "bias" in name:
                value.zero_()
            elif "Norm" in type(part).__name__:
                value.fill_(1)
            elif value.dim():
                value.normal_(0, std)


def assemble(recipe: Mapping[str, Any]) -> Model:
    """Build a model from a recipe and draw its weights, before any data is read.

    Args:
        recipe: `embedding`, `encoder`, `target`, and together or not at all `target_embedding` and `decoder`: names of
            parts with their settings; an embedding may also have settings of Embedding itself. `tie: true`: the head
            of lm or mlm is the word table (the target's, if any); `share: true`: source and target word tables are
            one. Other keys are facts, scalars for every part whose signature has them, unless its settings differ.

    Raises:
        LookupError: an unknown part or key; names the closest.
        ValueError: parts that do not go together, or a setting that cannot be.

    >>> encoder = {"transformer": {"layers": 1, "heads": 2, "inner": 8, "mask": "causal"}}
    >>> parts = {"embedding": {"word": {}}, "encoder": encoder, "target": {"lm": {}}}
    >>> assemble({"width": 4, "vocabulary": 7, **parts, "tie": True}).tied()
    [('embedding.word.weight', 'targets.lm.head.weight')]
    """
    sections = {name: recipe.get(name) for name in FOLDERS}
    facts = {key: value for key, value in recipe.items() if key not in FOLDERS and key not in SWITCHES}
    _refuse_incomplete(recipe, sections, facts)
    _refuse_combinations(sections)
    settings = Settings(facts)
    embedding = _embedding(sections["embedding"], settings, "")
    encoder = _only("encoder", sections["encoder"], settings)
    target_embedding = decoder = None
    if sections["decoder"]:
        target_embedding = _embedding(sections["target_embedding"], settings, "target_")
        decoder = _only("decoder", sections["decoder"], settings)
    narrow = (target_embedding or embedding).project
    inner = {"embedding_width": narrow.in_features} if narrow is not None and recipe.get("tie") else {}
    targets = {name: settings.build("target", name, own, **inner) for name, own in sections["target"].items()}
    for key in facts:
        refuse_unknown("a recipe", key, settings.used | set(FOLDERS) | set(SWITCHES))
    model = Model(embedding, encoder, targets, target_embedding, decoder, facts.get("std", 0.02))
    if recipe.get("share"):
        _share(model)
    if recipe.get("tie"):
        _tie(model)
    model.ties = model.tied()
    return model.initialise()


def _embedding(section: Mapping[str, Any], settings: Settings, stem: str) -> Embedding:
    parts, own, files = {}, {}, names("components.embedding")
    accepted = [name for name in signature(Embedding).parameters if name not in ("parts", "settings", "stem")]
    for key, value in section.items():
        refuse_unknown(f"{stem}embedding", key, files + accepted)
        _refuse_text_number(f"{stem}embedding.{key}", value)
        (parts if key in files else own)[key] = value
    if not parts:
        raise ValueError(f"{stem}embedding has no part; give it one of: {', '.join(files)}")
    complete = settings.complete(Embedding, own)
    complete |= {"width": own.get("width")}
    return Embedding(parts, settings, stem, **{name: complete[name] for name in accepted if name in complete})


def _only(folder: str, section: Mapping[str, Any], settings: Settings) -> nn.Module:
    ((name, own),) = section.items()
    return settings.build(folder, name, own)


def _refuse_incomplete(recipe: Mapping[str, Any], sections: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        _refuse_text_number(key, value)
        if isinstance(value, Mapping):
            refuse_unknown("a recipe", key, [*FOLDERS, *SWITCHES])
    for name in ("embedding", "encoder", "target"):
        if not sections[name]:
            raise ValueError(f"the recipe has no {name}; a model is embedding, encoder and target")
    for name, section in sections.items():
        if section is not None and not isinstance(section, Mapping):
            raise ValueError(f"{name} needs a mapping from part names to settings; got {section!r}")
    for name in ("encoder", "decoder"):
        if sections[name] and len(sections[name]) != 1:
            raise ValueError(f"{name} is one part, not {len(sections[name])}: {', '.join(sections[name])}")
    if not isinstance(facts.get("width"), int) or facts["width"] < 1:
        raise ValueError(f"the recipe needs a width, a whole number; got {facts.get('width')!r}")
    for name in SWITCHES:
        if not isinstance(recipe.get(name, False), bool):
            raise ValueError(f"{name} is true or false, not {recipe[name]!r}")


def _refuse_combinations(sections: Mapping[str, Any]) -> None:
    """Raise LookupError for unknown parts and ValueError for those that do not go together."""
    for name, section in sections.items():
        if name not in ("embedding", "target_embedding"):
            for part in section or {}:
                method(f"components.{FOLDERS[name]}", part)
    (encoder,), targets, decoder = sections["encoder"], sections["target"], sections["decoder"]
    dual = "dual" in sections["embedding"]
    if bool(decoder) != bool(sections["target_embedding"]):
        missing = "target_embedding" if decoder else "decoder"
        raise ValueError(f"decoder and target_embedding go together, but the recipe has no {missing}")
    if dual != (encoder == "dual"):
        raise ValueError("a dual embedding and a dual encoder go together; make both dual or neither")
    if dual and (decoder or len([key for key, own in sections["embedding"].items() if isinstance(own, Mapping)]) > 1):
        raise ValueError(
            "a dual embedding stands alone: its streams have parts of their own, and no decoder reads them"
        )
    if "clr" in targets and not dual:
        raise ValueError(f"clr compares two streams: it needs a dual embedding and encoder, not {encoder}")
    if dual and (wrong := [name for name in targets if name in OF_ONE]):
        raise ValueError(f"{', '.join(wrong)} reads one stream, but the encoder is dual")
    if "bilm" in targets and (encoder not in TWO_WAY or decoder):
        raise ValueError(f"bilm reads one half of states from each side: it needs {', '.join(TWO_WAY)}, not {encoder}")
    if "lm" in targets and not decoder and _looks_ahead(encoder, sections["encoder"][encoder]):
        raise ValueError(
            f"lm names the next token, which this {encoder} encoder has seen; give it mask: causal or prefix, a "
            f"decoder, or an encoder that runs one way"
        )


def _looks_ahead(encoder: str, own: Mapping[str, Any] | None) -> bool:
    return encoder in TWO_WAY or (encoder == "transformer" and (own or {}).get("mask", "full") == "full")


def _share(model: Model) -> None:
    tables = [getattr(part, "word", None) for part in (model.embedding, model.target_embedding)]
    if None in tables:
        raise ValueError("share makes source and target word tables one: both embeddings need a word part")
    _same_shape("share", "the target's word table", tables[1].weight, tables[0].weight)
    tables[1].weight = tables[0].weight


def _tie(model: Model) -> None:
    embedding = model.target_embedding or model.embedding
    word = next((getattr(embedding, name) for name in ("word", "word_patch") if hasattr(embedding, name)), None)
    heads = {name: model.targets[name].head for name in ("mlm", "lm") if name in model.targets}
    if word is None or not heads:
        raise ValueError(
            "tie makes the head of mlm or lm the word table: the recipe needs a word part and such a target"
        )
    for name, head in heads.items():
        _same_shape("tie", f"the head of {name}", head.weight, word.weight)
        head.weight = word.weight


def _same_shape(switch: str, what: str, weight: Tensor, table: Tensor) -> None:
    if weight.shape != table.shape:
        raise ValueError(
            f"{switch}: {what} is {tuple(weight.shape)}, but the word table {tuple(table.shape)}; give both the same "
            f"vocabulary and width, or {switch}: false"
        )
