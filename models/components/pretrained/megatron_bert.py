"""Megatron BERT: BERT with norms before each layer and after the last, none over the embedding.

Source: Shoeybi et al., 2019, arXiv:1909.08053; tensors as `MegatronBertForPreTraining.save_pretrained` names them.
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

__all__ = ["MegatronBert"]

LAYER = BERT_LAYER | {"attention_norm": "attention.ln", "feedforward_norm": "ln"}


class MegatronBert(Family):
    kinds = ("megatron-bert",)
    prefix = "bert"
    table = "bert.embeddings.word_embeddings.weight"
    head = "cls.predictions.decoder.weight"
    bare = "MegatronBertModel"
    twice = {"cls.predictions.decoder.bias": "cls.predictions.bias"}
    classes = {
        ("mlm",): "MegatronBertForMaskedLM",
        ("mlm", "sp"): "MegatronBertForPreTraining",
        ("sp",): "MegatronBertForNextSentencePrediction",
        ("cls",): "MegatronBertForSequenceClassification",
        ("regression",): "MegatronBertForSequenceClassification",
        ("tagging",): "MegatronBertForTokenClassification",
        ("span",): "MegatronBertForQuestionAnswering",
        ("choice",): "MegatronBertForMultipleChoice",
    }

    def recipe(self, config: Mapping) -> dict:
        recipe = bert_recipe(config)
        recipe["embedding"]["norm"] = "none"
        recipe["encoder"]["transformer"]["norm_first"] = True
        return recipe

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return pretraining_targets(names) or read_head(config, names)

    def config(self, facts: Facts) -> dict:
        return bert_config(facts) | {"pad_token_id": 0} | head_config(facts)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = embedding_rules("bert.embeddings") + linear("bert.encoder.ln", "encoder.norm")
        rules += layers(facts("encoder.transformer.layers"), "bert.encoder.layer.{}", "encoder.layers.{}", LAYER)
        return rules + pretraining_rules(facts, self.head) + head_rules(facts, "bert.pooler.dense")
