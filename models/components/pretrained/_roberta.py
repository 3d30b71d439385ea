"""What RoBERTa and XLM-R share, which is all but their names."""

from collections.abc import Collection, Mapping

from models.components.pretrained._encoders import (
    BERT_LAYER,
    bert_config,
    bert_recipe,
    embedding_rules,
    head_config,
    head_rules,
    read_head,
)
from models.components.pretrained._family import Facts, Family, padding
from models.components.pretrained._names import Rule, layers, linear, same

__all__ = ["RobertaLike"]


class RobertaLike(Family):
    """BERT's layers; positions count real tokens, from the row after the padding id's."""

    prefix = "roberta"
    table = "roberta.embeddings.word_embeddings.weight"
    head = "lm_head.decoder.weight"
    twice = {"lm_head.decoder.bias": "lm_head.bias"}

    def recipe(self, config: Mapping) -> dict:
        recipe = bert_recipe(config)
        recipe["embedding"]["position"] |= {"start": config.get("pad_token_id", 1) + 1, "counted": True}
        return recipe

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return {"mlm": {}} if "lm_head.bias" in names else read_head(config, names)

    def config(self, facts: Facts) -> dict:
        return bert_config(facts) | {"pad_token_id": padding(facts, "embedding.position.start")} | head_config(facts)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = embedding_rules("roberta.embeddings") + linear("roberta.embeddings.LayerNorm", "embedding.norm")
        rules += layers(
            facts("encoder.transformer.layers"), "roberta.encoder.layer.{}", "encoder.layers.{}", BERT_LAYER
        )
        if facts.has("target", "mlm"):
            rules += linear("lm_head.dense", "targets.mlm.transform") + linear("lm_head.layer_norm", "targets.mlm.norm")
            rules.append(same("lm_head.bias", "targets.mlm.head.bias"))
            if not facts.tied:
                rules.append(same(self.head, "targets.mlm.head.weight"))
        return rules + head_rules(facts, "roberta.pooler.dense", ("classifier.dense", "classifier.out_proj"))
