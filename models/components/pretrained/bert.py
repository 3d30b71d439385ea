"""BERT: norms after each layer; a masked-word head, a next-sentence head, both, or a fine-tuning head.

Source: Devlin et al., 2018, arXiv:1810.04805; tensors as `BertForPreTraining.save_pretrained` names them.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._encoders import (
    BERT_LAYER,
    bert_config,
    bert_recipe,
    embedding_rules,
    head_config,
    head_rules,
    pretraining_rules,
    pretraining_targets,
    read_head,
)
from models.components.pretrained._family import Facts, Family
from models.components.pretrained._names import Rule, layers, linear

__all__ = ["Bert"]


class Bert(Family):
    kinds = ("bert",)
    prefix = "bert"
    table = "bert.embeddings.word_embeddings.weight"
    head = "cls.predictions.decoder.weight"
    bare = "BertModel"
    twice = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    classes = {
        ("mlm",): "BertForMaskedLM",
        ("mlm", "sp"): "BertForPreTraining",
        ("sp",): "BertForNextSentencePrediction",
        ("cls",): "BertForSequenceClassification",
        ("regression",): "BertForSequenceClassification",
        ("tagging",): "BertForTokenClassification",
        ("span",): "BertForQuestionAnswering",
        ("choice",): "BertForMultipleChoice",
    }

    def recipe(self, config: Mapping) -> dict:
        return bert_recipe(config)

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return pretraining_targets(names) or read_head(config, names)

    def config(self, facts: Facts) -> dict:
        return bert_config(facts) | {"pad_token_id": 0} | head_config(facts)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = embedding_rules("bert.embeddings") + linear("bert.embeddings.LayerNorm", "embedding.norm")
        rules += layers(facts("encoder.transformer.layers"), "bert.encoder.layer.{}", "encoder.layers.{}", BERT_LAYER)
        return rules + pretraining_rules(facts, self.head) + head_rules(facts, "bert.pooler.dense")
