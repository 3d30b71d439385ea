"""ALBERT: one layer for all, a factorised embedding, sentence order instead of next sentence.

Source: Lan et al., 2019, arXiv:1909.11942; tensors as `AlbertForPreTraining.save_pretrained` names them.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._encoders import (
    bert_config,
    bert_recipe,
    embedding_rules,
    head_config,
    head_rules,
    read_head,
)
from models.components.pretrained._family import Facts, Family, require
from models.components.pretrained._files import CheckpointRejected
from models.components.pretrained._names import Rule, layers, linear, same

__all__ = ["Albert"]

LAYER = {
    "attention.query": "attention.query",
    "attention.key": "attention.key",
    "attention.value": "attention.value",
    "attention.output": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "feedforward.inner": "ffn",
    "feedforward.outer": "ffn_output",
    "feedforward_norm": "full_layer_layer_norm",
}


class Albert(Family):
    kinds = ("albert",)
    prefix = "albert"
    table = "albert.embeddings.word_embeddings.weight"
    head = "predictions.decoder.weight"
    bare = "AlbertModel"
    twice = {"predictions.decoder.bias": "predictions.bias"}
    classes = {
        ("mlm",): "AlbertForMaskedLM",
        ("mlm", "sp"): "AlbertForPreTraining",
        ("cls",): "AlbertForSequenceClassification",
        ("regression",): "AlbertForSequenceClassification",
        ("tagging",): "AlbertForTokenClassification",
        ("span",): "AlbertForQuestionAnswering",
        ("choice",): "AlbertForMultipleChoice",
    }

    def recipe(self, config: Mapping) -> dict:
        require(config, {"num_hidden_groups": 1, "inner_group_num": 1})
        if config["embedding_size"] == config["hidden_size"]:
            raise CheckpointRejected("this albert projects an embedding that is as wide as its layers; ours would not")
        recipe = bert_recipe(config)
        recipe["embedding"]["width"] = config["embedding_size"]
        recipe["encoder"]["transformer"]["shared"] = True
        return recipe

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        marks = {"mlm": "predictions.bias", "sp": "sop_classifier.classifier.weight"}
        found = {target: {} for target, name in marks.items() if name in names}
        if "mlm" in found and self.head in names:  # a tied head is as narrow as its table by itself
            found["mlm"] = {"embedding_width": config["embedding_size"]}
        return found or read_head(config, names, config.get("classifier_dropout_prob", 0.1))

    def config(self, facts: Facts) -> dict:
        groups = {"num_hidden_groups": 1, "inner_group_num": 1, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
        width = {"embedding_size": facts.embedding()["width"] or facts.recipe["width"]}
        free = facts.has("target", "mlm") and not facts.tied
        if free and facts("target.mlm.embedding_width") != width["embedding_size"]:
            raise CheckpointRejected(
                f"transformers' albert has a head as narrow as its embedding, tied or not; set the recipe's "
                f"target.mlm.embedding_width to {width['embedding_size']}"
            )
        return bert_config(facts) | width | groups | head_config(facts)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = embedding_rules("albert.embeddings") + linear("albert.embeddings.LayerNorm", "embedding.norm")
        rules += linear("albert.encoder.embedding_hidden_mapping_in", "embedding.project")
        rules += layers(1, "albert.encoder.albert_layer_groups.{0}.albert_layers.{0}", "encoder.layers.{}", LAYER)
        if facts.has("target", "mlm"):
            rules += linear("predictions.dense", "targets.mlm.transform")
            rules += linear("predictions.LayerNorm", "targets.mlm.norm")
            rules.append(same("predictions.bias", "targets.mlm.head.bias"))
            if not facts.tied:
                rules.append(same(self.head, "targets.mlm.head.weight"))
        if facts.has("target", "sp"):
            rules += linear("albert.pooler", "targets.sp.pool")
            rules += linear("sop_classifier.classifier", "targets.sp.head")
        return rules + head_rules(facts, "albert.pooler")
