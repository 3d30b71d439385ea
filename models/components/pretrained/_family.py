"""What a transformers family says about itself, and the settings of a recipe with their defaults filled in."""

from collections.abc import Collection, Mapping
from inspect import Parameter, signature

from models import method
from models.components._model import Embedding
from models.components.pretrained._files import CheckpointRejected
from models.components.pretrained._names import Rule, same

__all__ = [
    "Facts",
    "Family",
    "act_here",
    "act_there",
    "causal_config",
    "causal_rules",
    "causal_target",
    "class_names",
    "labels",
    "padding",
    "require",
    "start_token",
]

ACTS = {  # transformers' names, the one it writes itself first
    "gelu": ("gelu", "gelu_python"),
    "gelu_tanh": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "quick_gelu": ("quick_gelu",),
    "relu": ("relu",),
    "silu": ("silu", "swish"),
    "tanh": ("tanh",),
}
EMBEDDINGS = ("embedding", "target_embedding")
FREE = ("dropout", "smoothing", "z_loss", "temperature", "symmetric", "head_bias", "embedding_width", "facts", ".width")
HEADS = ("LMHeadModel", "ForCausalLM", "ForConditionalGeneration", "MTModel")


class Facts:
    """A recipe as its parts will see it: facts("encoder.transformer.layers") is what was set there, or the common
    setting of that name, or the default of the part's signature."""

    def __init__(self, recipe: Mapping, config: Mapping | None = None):
        self.recipe = recipe
        self.said = config or {}  # entries of config.json that a recipe has no word for

    def streams(self) -> tuple["Facts", "Facts"]:
        """The two streams of a dual recipe, each as a recipe of its own."""
        embedding, encoder = self.settings("embedding", "dual"), self.settings("encoder", "dual")
        widths = self.recipe.get("widths") or (self.recipe["width"],) * 2
        common = {key: value for key, value in self.recipe.items() if not isinstance(value, Mapping)}
        return tuple(
            Facts(common | {"width": width, "embedding": embedding[name], "encoder": encoder[name]})
            for name, width in zip(("first", "second"), widths, strict=True)
        )

    def parts(self, component: str) -> tuple[str, ...]:
        """Names of a component's parts, in order: parts("target") -> ("mlm", "sp")."""
        named = self.recipe.get(component) or {}
        return tuple(name for name, own in named.items() if isinstance(own, Mapping) or own is None)

    def has(self, component: str, part: str) -> bool:
        """Whether a component has a part."""
        return part in self.parts(component)

    def settings(self, component: str, part: str) -> dict:
        """All settings of a part of the recipe."""
        folder = "embedding" if component in EMBEDDINGS else component
        return self._complete(method(f"components.{folder}", part), self.recipe[component][part])

    def embedding(self, component: str = "embedding") -> dict:
        """The settings of an embedding itself: norm, its eps if it has one, dropout, width."""
        own = {key: value for key, value in self.recipe[component].items() if key not in self.parts(component)}
        known = self._complete(Embedding, own)
        norm = {"norm": known["norm"]} | ({} if known["norm"] == "none" else {"eps": known["eps"]})
        return norm | {"dropout": known["dropout"], "width": own.get("width")}

    def __call__(self, name: str):
        """A setting by its dotted name."""
        component, part, setting = name.split(".")
        return self.settings(component, part)[setting]

    def common(self, name: str, default):
        """A setting of the recipe itself."""
        return self.recipe.get(name, default)

    @property
    def tied(self) -> bool:
        """Whether the head of words is the word table; of a recipe without such a head nothing else is true."""
        return bool(self.recipe.get("tie")) or not {"mlm", "lm"} & set(self.parts("target"))

    def attention_dropout(self, stack: str) -> float:
        """Dropout of a stack's attention, which unless set is that of the stack."""
        rate = self(f"{stack}.attention_dropout")
        return self(f"{stack}.dropout") if rate is None else rate

    def flat(self) -> dict[str, object]:
        """Every setting that a model's numbers depend on, by its dotted name."""
        if self.has("embedding", "dual"):
            streams = zip(("first", "second"), self.streams(), strict=True)
            both = {f"{name} {key}": value for name, stream in streams for key, value in stream.flat().items()}
            head = self.settings("target", "clr")
            return both | {f"target.clr.{key}": head[key] for key in ("pools", "features")}
        flat = {"tie": self.tied, "share": bool(self.recipe.get("share"))}
        for component in (*EMBEDDINGS, "encoder", "decoder", "target"):
            for part in self.parts(component):
                settings = self.settings(component, part)
                if part == "transformer":
                    settings = _plain(settings, self.recipe["width"], component)
                flat |= {f"{component}.{part}.{key}": value for key, value in settings.items()}
            if component in EMBEDDINGS and self.recipe.get(component):
                flat |= {f"{component}.{key}": value for key, value in self.embedding(component).items()}
        return {name: value for name, value in flat.items() if not name.endswith(FREE)}

    def _complete(self, part: type, own: Mapping | None) -> dict:
        known = signature(part).parameters
        defaults = {name: p.default for name, p in known.items() if p.default is not Parameter.empty}
        return defaults | {name: self.recipe[name] for name in known if name in self.recipe} | dict(own or {})


def _plain(stack: dict, width: int, component: str) -> dict:
    """A stack's settings with what None stands for, and one name for what has two."""
    stands = {
        "head_width": width // stack["heads"],
        "kv_heads": stack["heads"],
        "final_norm": stack["norm_first"],
        "attention_bias": stack["bias"],
        "mask": "causal" if component == "decoder" else "full",
    }
    plain = {key: stands.get(key) if value is None else value for key, value in stack.items()}
    for kind, names in (("relative", ("buckets", "distance")), ("rotary", ("theta", "scaling"))):
        if plain["positions"] != kind:
            plain = {key: value for key, value in plain.items() if key not in names}
    return plain | {"norm": {"t5": "rms"}.get(plain["norm"], plain["norm"])}


class Family:
    """One model_type of transformers: its config and its tensors, told in terms of our recipes.

    Attributes:
        kinds: values of model_type in config.json; the first is the one that is written.
        classes: targets, sorted -> the class of transformers that has just these heads.
        prefix: what stands before the tensors of the bare model in files of a model with a head; "" for nothing.
        table: the word table in files.
        head: the matrix over all words in files, absent where it is that table.
        ties: whether the head is the word table where config.json does not say; None: whatever it says (T5).
        bare: the class without a head; its files have no prefix.
        twice: names that some files repeat another tensor under.
        buffers: a pattern of names that are no weights: old files repeat there what the config says.
        spare: a pattern of weights that may stay behind where no target reads them.
    """

    kinds: tuple[str, ...]
    classes: Mapping[tuple[str, ...], str]
    prefix: str = ""
    table: str = ""
    head: str = "lm_head.weight"
    ties: bool | None = True
    bare: str = ""
    twice: Mapping[str, str] = {}
    buffers: str = r"(^|\.)position_ids$"
    spare: str = r"(^|\.)pooler\."

    def recipe(self, config: Mapping) -> dict:
        """The recipe that a config.json describes, without targets and ties."""
        raise NotImplementedError

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        """The targets whose tensors are among `names`, with their settings."""
        raise NotImplementedError

    def config(self, facts: Facts) -> dict:
        """The config.json of a recipe, without model_type and architectures."""
        raise NotImplementedError

    def rules(self, facts: Facts) -> list[Rule]:
        """Every tensor in the file of this recipe, the head of a tied one apart; with the prefix, as under a head."""
        raise NotImplementedError

    def architecture(self, facts: Facts) -> str:
        """The class of transformers that has a recipe's heads.

        Raises:
            CheckpointRejected: there is none.
        """
        targets = tuple(sorted(facts.parts("target")))
        if not targets and self.bare:
            return self.bare
        if targets not in self.classes:
            known = "; ".join(" + ".join(names) for names in self.classes)
            raise CheckpointRejected(
                f"transformers has no {self.kinds[0]} with the targets {' + '.join(targets) or 'none'}; "
                f"it has these: {known}. Export a recipe with one of them"
            )
        return self.classes[targets]


def causal_target(config: Mapping, names: Collection[str]) -> dict:
    """lm or cls, where a checkpoint of a language model says or shows that it has that head."""
    if "score.weight" in names:
        return {"cls": {"labels": labels(config), "pool": "last", "transform": False, "bias": False, "dropout": 0.0}}
    kind = next(iter(config.get("architectures") or ()), "")
    return {"lm": {}} if "lm_head.weight" in names or kind.endswith(HEADS) else {}


def causal_rules(facts: Facts) -> list[Rule]:
    """The head of a language model, unless tied, or that of a classifier."""
    if facts.has("target", "cls"):
        return [same("score.weight", "targets.cls.head.weight")]
    return [] if facts.tied else [same("lm_head.weight", "targets.lm.head.weight")]


def class_names(count: int) -> dict:
    """What config.json says of a classifier's outputs, which have no names here."""
    names = [f"LABEL_{i}" for i in range(count)]
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def causal_config(facts: Facts) -> dict:
    """What config.json says of a language model's head."""
    names = class_names(facts("target.cls.labels")) if facts.has("target", "cls") else {}
    # unless told: the defaults are ids of the published tokenizers, which no other vocabulary need have
    return {"tie_word_embeddings": facts.tied, "bos_token_id": None, "eos_token_id": None} | names


def require(config: Mapping, wanted: Mapping) -> None:
    """Refuse a config whose entries, where there are any, are not the wanted ones.

    Raises:
        CheckpointRejected: the model differs from ours there; names all such entries.
    """
    wrong = {key: config[key] for key, value in wanted.items() if config.get(key, value) != value}
    if wrong:
        listed = ", ".join(f"{key}: {value!r} (only {wanted[key]!r} converts)" for key, value in wrong.items())
        raise CheckpointRejected(f"this {config.get('model_type')} is built differently: {listed}")


def start_token(facts: Facts, default: int) -> int:
    """The token before a decoder's first: the start of a text where the tokenizer says one, as in training here."""
    told = facts.said.get("bos_token_id")
    return default if told is None else told


def padding(facts: Facts, start: str) -> int:
    """The padding id where positions count from the row after it, as in fairseq's models.

    Args:
        start: the setting that says the first row.

    Raises:
        CheckpointRejected: the tokenizer's padding id is another.
    """
    wanted = facts(start) - 1
    if (told := facts.said.get("pad_token_id", wanted)) != wanted:
        raise CheckpointRejected(
            f"the padding id is {told}, from which transformers counts positions from row {told + 1}, but {start} is "
            f"{wanted + 1}; train with {start}: {told + 1}, or with a tokenizer whose padding id is {wanted}"
        )
    return wanted


def act_here(name: str) -> str:
    """Our name of an activation.

    Raises:
        CheckpointRejected: an activation that we have not.
    """
    for ours, theirs in ACTS.items():
        if name in theirs:
            return ours
    known = ", ".join(name for theirs in ACTS.values() for name in theirs)
    raise CheckpointRejected(f"the checkpoint's activation is {name!r}; known are: {known}")


def act_there(name: str) -> str:
    """Transformers' name of an activation.

    Raises:
        CheckpointRejected: an activation that transformers has not.
    """
    if name not in ACTS:
        raise CheckpointRejected(f"transformers has no activation like {name!r}; it has: {', '.join(ACTS)}")
    return ACTS[name][0]


def labels(config: Mapping) -> int:
    """How many classes a config.json speaks of; transformers leaves two unsaid."""
    return len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
