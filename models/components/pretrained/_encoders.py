"""What BERT, RoBERTa, ALBERT and ViT share: config entries, names in a layer, and the fine-tuning heads."""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import Facts, act_here, act_there, class_names, labels
from models.components.pretrained._files import CheckpointRejected
from models.components.pretrained._names import Rule, linear, same

__all__ = [
    "BERT_LAYER",
    "bert_config",
    "bert_recipe",
    "embedding_rules",
    "head_config",
    "head_rules",
    "pretraining_rules",
    "pretraining_targets",
    "read_head",
    "stack_config",
    "stack_recipe",
]

BERT_LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feedforward.inner": "intermediate.dense",
    "feedforward.outer": "output.dense",
    "feedforward_norm": "output.LayerNorm",
}
SINGLE = "single_label_classification"
SENTENCE = {"cls": "labels", "regression": "outputs"}  # targets of whole rows, and what they call their outputs


def stack_recipe(config: Mapping) -> dict:
    """The common settings and the encoder that a config of BERT's kind describes."""
    dropout = config.get("hidden_dropout_prob", 0.1)
    return {
        "width": config["hidden_size"],
        "dropout": dropout,
        "eps": config.get("layer_norm_eps", 1e-12),
        "act": act_here(config.get("hidden_act", "gelu")),
        "std": config.get("initializer_range", 0.02),
        "encoder": {
            "transformer": {
                "layers": config["num_hidden_layers"],
                "heads": config["num_attention_heads"],
                "inner": config["intermediate_size"],
                "attention_dropout": config.get("attention_probs_dropout_prob", dropout),
            }
        },
    }


def stack_config(facts: Facts) -> dict:
    """The other way."""
    stack = facts.settings("encoder", "transformer")
    return {
        "hidden_size": facts.recipe["width"],
        "hidden_dropout_prob": stack["dropout"],
        "attention_probs_dropout_prob": facts.attention_dropout("encoder.transformer"),
        "layer_norm_eps": stack["eps"],
        "hidden_act": act_there(stack["act"]),
        "initializer_range": facts.common("std", 0.02),
        "num_hidden_layers": stack["layers"],
        "num_attention_heads": stack["heads"],
        "intermediate_size": stack["inner"],
    }


def bert_recipe(config: Mapping) -> dict:
    """The recipe of a text encoder, without targets."""
    return stack_recipe(config) | {
        "vocabulary": config["vocab_size"],
        "embedding": {
            "word": {},
            "position": {"length": config["max_position_embeddings"]},
            "segment": {"kinds": config.get("type_vocab_size", 2)},
        },
    }


def bert_config(facts: Facts) -> dict:
    """The config of a text encoder."""
    return stack_config(facts) | {
        "vocab_size": facts("embedding.word.vocabulary"),
        "max_position_embeddings": facts("embedding.position.length"),
        "type_vocab_size": facts("embedding.segment.kinds"),
        "tie_word_embeddings": facts.tied,
    }


def embedding_rules(theirs: str) -> list[Rule]:
    """The tables of a text encoder's embedding, which the file keeps under `theirs`."""
    names = {"word": "word", "position": "position", "segment": "token_type"}
    tables = [same(f"{theirs}.{name}_embeddings.weight", f"embedding.{part}.weight") for part, name in names.items()]
    return tables


def pretraining_targets(names: Collection[str]) -> dict:
    """BERT's own heads among the tensors of a file."""
    marks = {"mlm": "cls.predictions.bias", "sp": "cls.seq_relationship.weight"}
    return {target: {} for target, name in marks.items() if name in names}


def pretraining_rules(facts: Facts, head: str) -> list[Rule]:
    """Tensors of BERT's own heads; `head` is the matrix over all words."""
    rules = []
    if facts.has("target", "mlm"):
        rules += linear("cls.predictions.transform.dense", "targets.mlm.transform")
        rules += linear("cls.predictions.transform.LayerNorm", "targets.mlm.norm")
        rules.append(same("cls.predictions.bias", "targets.mlm.head.bias"))
        rules += [] if facts.tied else [same(head, "targets.mlm.head.weight")]
    if facts.has("target", "sp"):
        rules += linear("bert.pooler.dense", "targets.sp.pool") + linear("cls.seq_relationship", "targets.sp.head")
    return rules


def read_head(config: Mapping, names: Collection[str], dropout: float | None = None) -> dict:
    """The fine-tuning target that a checkpoint holds; {} for none.

    Args:
        dropout: before the head's last layer; None for that of the config.
    """
    if "qa_outputs.weight" in names:
        return {"span": {}}
    if dropout is None and (dropout := config.get("classifier_dropout")) is None:
        dropout = config.get("hidden_dropout_prob", 0.1)
    kind = next(iter(config.get("architectures") or ()), "")
    if kind.endswith("ForMultipleChoice"):
        return {"choice": {"dropout": dropout}}
    if kind.endswith("ForTokenClassification"):
        return {"tagging": {"classes": labels(config), "dropout": dropout}}
    if kind.endswith("ForSequenceClassification"):
        problem = config.get("problem_type") or SINGLE
        if problem not in (SINGLE, "regression"):
            raise CheckpointRejected(f"a head for {problem}; only {SINGLE} and regression convert")
        target = "regression" if problem == "regression" else "cls"
        return {target: {SENTENCE[target]: labels(config), "dropout": dropout}}
    return {}


def head_config(facts: Facts) -> dict:
    """What config.json says about the recipe's fine-tuning target; {} where it has none."""
    for target, setting in (SENTENCE | {"tagging": "classes"}).items():
        if facts.has("target", target):
            kind = {"cls": SINGLE, "regression": "regression"}.get(target)
            return class_names(facts(f"target.{target}.{setting}")) | ({"problem_type": kind} if kind else {})
    return {}


def head_rules(facts: Facts, pooler: str, sentence: tuple[str, str] | None = None) -> list[Rule]:
    """Tensors of the recipe's fine-tuning target.

    Args:
        pooler: the tanh layer over the first place.
        sentence: the two layers of sentence classification, where they are not that pooler and "classifier".
    """
    rules = []
    for target in facts.parts("target"):
        ours = f"targets.{target}"
        if target in SENTENCE or target == "choice":
            dense, head = (pooler, "classifier") if target == "choice" or sentence is None else sentence
            rules += linear(dense, f"{ours}.pool") + linear(head, f"{ours}.head")
        elif target in ("tagging", "span"):
            rules += linear("classifier" if target == "tagging" else "qa_outputs", f"{ours}.head")
    return rules
