"""GPT-2: norms before each layer, a tied head; matrices as (in, out), query, key and value side by side.

Source: Radford et al., 2019, "Language Models are Unsupervised Multitask Learners"; tensors as
`GPT2LMHeadModel.save_pretrained` names them.
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
    require,
)
from models.components.pretrained._names import Rule, fused, linear, same, turned

__all__ = ["Gpt2"]

TURNED = {"attention.output": "attn.c_proj", "feedforward.inner": "mlp.c_fc", "feedforward.outer": "mlp.c_proj"}
NORMS = {"attention_norm": "ln_1", "feedforward_norm": "ln_2"}


class Gpt2(Family):
    kinds = ("gpt2",)
    bare = "GPT2Model"
    prefix = "transformer"
    buffers = r"\.attn\.(masked_)?bias$"
    classes = {("lm",): "GPT2LMHeadModel", ("cls",): "GPT2ForSequenceClassification"}
    table = "transformer.wte.weight"

    def recipe(self, config: Mapping) -> dict:
        require(config, {"scale_attn_weights": True, "add_cross_attention": False})
        return {
            "width": config["n_embd"],
            "vocabulary": config["vocab_size"],
            "dropout": config.get("resid_pdrop", 0.1),
            "eps": config.get("layer_norm_epsilon", 1e-5),
            "act": act_here(config.get("activation_function", "gelu_new")),
            "std": config.get("initializer_range", 0.02),
            "embedding": {"word": {}, "position": {"length": config["n_positions"]}, "norm": "none"},
            "encoder": {
                "transformer": {
                    "layers": config["n_layer"],
                    "heads": config["n_head"],
                    "inner": config.get("n_inner") or 4 * config["n_embd"],
                    "mask": "causal",
                    "norm_first": True,
                    "layer_scale": config.get("scale_attn_by_inverse_layer_idx", False),
                    "attention_dropout": config.get("attn_pdrop", 0.1),
                }
            },
        }

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return causal_target(config, names)

    def config(self, facts: Facts) -> dict:
        stack = facts.settings("encoder", "transformer")
        return {
            "n_embd": facts.recipe["width"],
            "vocab_size": facts("embedding.word.vocabulary"),
            "n_positions": facts("embedding.position.length"),
            "resid_pdrop": stack["dropout"],
            "embd_pdrop": stack["dropout"],
            "attn_pdrop": facts.attention_dropout("encoder.transformer"),
            "layer_norm_epsilon": stack["eps"],
            "activation_function": act_there(stack["act"]),
            "initializer_range": facts.common("std", 0.02),
            "n_layer": stack["layers"],
            "n_head": stack["heads"],
            "n_inner": stack["inner"],
            "scale_attn_by_inverse_layer_idx": stack["layer_scale"],
        } | causal_config(facts)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = [
            same("transformer.wte.weight", "embedding.word.weight"),
            same("transformer.wpe.weight", "embedding.position.weight"),
        ]
        for i in range(facts("encoder.transformer.layers")):
            theirs, ours = f"transformer.h.{i}", f"encoder.layers.{i}"
            for part in ("weight", "bias"):
                three = [f"{ours}.attention.{name}.{part}" for name in ("query", "key", "value")]
                rules.append(fused(f"{theirs}.attn.c_attn.{part}", three, turn=True))
            for mine, name in TURNED.items():
                rules.append(turned(f"{theirs}.{name}.weight", f"{ours}.{mine}.weight"))
                rules.append(same(f"{theirs}.{name}.bias", f"{ours}.{mine}.bias"))
            for mine, name in NORMS.items():
                rules += linear(f"{theirs}.{name}", f"{ours}.{mine}")
        rules += linear("transformer.ln_f", "encoder.norm")
        return rules + causal_rules(facts)
