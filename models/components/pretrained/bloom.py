"""BLOOM: norms before each layer, a norm over the embedding, ALiBi; query, key and value side by side in each head.

Source: Le Scao et al., 2022, arXiv:2211.05100; tensors as `BloomForCausalLM.save_pretrained` names them.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import Facts, Family, causal_config, causal_rules, causal_target, require
from models.components.pretrained._names import Rule, fused, layers, linear, same

__all__ = ["Bloom"]

LAYER = {
    "attention.output": "self_attention.dense",
    "attention_norm": "input_layernorm",
    "feedforward.inner": "mlp.dense_h_to_4h",
    "feedforward.outer": "mlp.dense_4h_to_h",
    "feedforward_norm": "post_attention_layernorm",
}


class Bloom(Family):
    kinds = ("bloom",)
    bare = "BloomModel"
    prefix = "transformer"
    classes = {("lm",): "BloomForCausalLM", ("cls",): "BloomForSequenceClassification"}
    table = "transformer.word_embeddings.weight"

    def recipe(self, config: Mapping) -> dict:
        require(config, {"apply_residual_connection_post_layernorm": False})
        width = config.get("hidden_size") or config["n_embed"]
        return {
            "width": width,
            "vocabulary": config["vocab_size"],
            "dropout": config.get("hidden_dropout", 0.0),
            "eps": config.get("layer_norm_epsilon", 1e-5),
            "act": "gelu_tanh",
            "std": config.get("initializer_range", 0.02),
            "embedding": {"word": {}, "norm": "layer"},
            "encoder": {
                "transformer": {
                    "layers": config["n_layer"],
                    "heads": config.get("n_head") or config["num_attention_heads"],
                    "inner": 4 * width,
                    "mask": "causal",
                    "norm_first": True,
                    "positions": "alibi",
                    "attention_dropout": config.get("attention_dropout", 0.0),
                }
            },
        }

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return causal_target(config, names)

    def config(self, facts: Facts) -> dict:
        stack = facts.settings("encoder", "transformer")
        return {
            "hidden_size": facts.recipe["width"],
            "vocab_size": facts("embedding.word.vocabulary"),
            "hidden_dropout": stack["dropout"],
            "attention_dropout": facts.attention_dropout("encoder.transformer"),
            "layer_norm_epsilon": stack["eps"],
            "initializer_range": facts.common("std", 0.02),
            "n_layer": stack["layers"],
            "n_head": stack["heads"],
        } | causal_config(facts)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = [same("transformer.word_embeddings.weight", "embedding.word.weight")]
        rules += linear("transformer.word_embeddings_layernorm", "embedding.norm")
        heads, count = facts("encoder.transformer.heads"), facts("encoder.transformer.layers")
        for i in range(count):
            for part in ("weight", "bias"):
                three = [f"encoder.layers.{i}.attention.{name}.{part}" for name in ("query", "key", "value")]
                rules.append(fused(f"transformer.h.{i}.self_attention.query_key_value.{part}", three, heads))
        rules += layers(count, "transformer.h.{}", "encoder.layers.{}", LAYER)
        rules += linear("transformer.ln_f", "encoder.norm")
        return rules + causal_rules(facts)
