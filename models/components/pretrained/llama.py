"""LLaMA 1 to 3: RMS norms before each layer, gated SiLU, rotary positions (LLaMA 3.1 stretches them), grouped heads.

Source: Touvron et al., 2023, arXiv:2302.13971 and arXiv:2307.09288; Grattafiori et al., 2024, arXiv:2407.21783; tensors
as `LlamaForCausalLM.save_pretrained` names them, whose rotary halves are ours.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import (
    Facts,
    Family,
    act_here,
    act_there,
    causal_config,
    causal_rules,
    causal_target,
)
from models.components.pretrained._files import CheckpointRejected
from models.components.pretrained._names import Rule, layers, same

__all__ = ["Llama"]

ATTENTION = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
}
FEEDFORWARD = {
    "feedforward.inner": "mlp.up_proj",
    "feedforward.gate": "mlp.gate_proj",
    "feedforward.outer": "mlp.down_proj",
}
NORMS = {"attention_norm": "input_layernorm", "feedforward_norm": "post_attention_layernorm"}
SCALING = {
    "factor": "factor",
    "low": "low_freq_factor",
    "high": "high_freq_factor",
    "length": "original_max_position_embeddings",
}


class Llama(Family):
    kinds = ("llama",)
    bare = "LlamaModel"
    classes = {("lm",): "LlamaForCausalLM", ("cls",): "LlamaForSequenceClassification"}
    prefix = "model"
    table = "model.embed_tokens.weight"
    ties = False
    buffers = r"rotary_emb\.inv_freq$"

    def recipe(self, config: Mapping) -> dict:
        heads = config["num_attention_heads"]
        return {
            "width": config["hidden_size"],
            "vocabulary": config["vocab_size"],
            "dropout": 0.0,
            "eps": config.get("rms_norm_eps", 1e-6),
            "act": act_here(config.get("hidden_act", "silu")),
            "std": config.get("initializer_range", 0.02),
            "embedding": {"word": {}, "norm": "none"},
            "encoder": {
                "transformer": {
                    "layers": config["num_hidden_layers"],
                    "heads": heads,
                    "kv_heads": config.get("num_key_value_heads") or heads,
                    "head_width": config.get("head_dim") or config["hidden_size"] // heads,
                    "inner": config["intermediate_size"],
                    "mask": "causal",
                    "norm_first": True,
                    "norm": "rms",
                    "gated": True,
                    "bias": config.get("mlp_bias", False),
                    "attention_bias": config.get("attention_bias", False),
                    "positions": "rotary",
                    "attention_dropout": config.get("attention_dropout", 0.0),
                    **_rotary(config),
                }
            },
        }

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return causal_target(config, names)

    def config(self, facts: Facts) -> dict:
        stack = facts.settings("encoder", "transformer")
        rotary, scaling, longest = {"rope_type": "default"}, stack["scaling"], {}
        if scaling:
            rotary = {"rope_type": "llama3"} | {name: scaling[ours] for ours, name in SCALING.items()}
            longest = {"max_position_embeddings": int(scaling["factor"] * scaling["length"])}
        return (
            longest
            | {
                "hidden_size": facts.recipe["width"],
                "vocab_size": facts("embedding.word.vocabulary"),
                "rms_norm_eps": stack["eps"],
                "hidden_act": act_there(stack["act"]),
                "initializer_range": facts.common("std", 0.02),
                "num_hidden_layers": stack["layers"],
                "num_attention_heads": stack["heads"],
                "num_key_value_heads": stack["kv_heads"] or stack["heads"],
                "head_dim": stack["head_width"] or facts.recipe["width"] // stack["heads"],
                "intermediate_size": stack["inner"],
                "mlp_bias": stack["bias"],
                "attention_bias": _attention_bias(stack),
                "attention_dropout": facts.attention_dropout("encoder.transformer"),
                "rope_parameters": rotary | {"rope_theta": stack["theta"]},
            }
            | causal_config(facts)
        )

    def rules(self, facts: Facts) -> list[Rule]:
        stack, where = facts.settings("encoder", "transformer"), ("model.layers.{}", "encoder.layers.{}")
        rules = [same(self.table, "embedding.word.weight"), same("model.norm.weight", "encoder.norm.weight")]
        rules += layers(stack["layers"], *where, ATTENTION, bias=_attention_bias(stack))
        rules += layers(stack["layers"], *where, FEEDFORWARD, bias=stack["bias"])
        rules += layers(stack["layers"], *where, NORMS, bias=False)
        return rules + causal_rules(facts)


def _attention_bias(stack: Mapping) -> bool:
    return stack["bias"] if stack["attention_bias"] is None else stack["attention_bias"]


def _rotary(config: Mapping) -> dict:
    """theta and scaling, from rope_parameters or, as files before transformers 5 have it, rope_theta and rope_scaling.

    Raises:
        CheckpointRejected: rotary positions stretched in another way.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if kind == "default":
        return {"theta": theta}
    if kind != "llama3":
        raise CheckpointRejected(f"rotary positions stretched by {kind!r}; only 'llama3' and 'default' convert")
    return {"theta": theta, "scaling": {ours: rope[name] for ours, name in SCALING.items()}}
