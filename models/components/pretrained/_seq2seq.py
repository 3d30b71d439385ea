"""What BART, PEGASUS, Marian and S2T share: names of their layers in files, and the config entries of two stacks."""

from collections.abc import Mapping

from models.components.pretrained._family import Facts, act_here, act_there, start_token
from models.components.pretrained._names import Rule, layers, same, viewed, zeros

__all__ = ["head_rules", "seq2seq_config", "seq2seq_recipe", "stack_rules"]

LAYER = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "feedforward.inner": "fc1",
    "feedforward.outer": "fc2",
    "feedforward_norm": "final_layer_norm",
}
CROSS = {
    "cross.query": "encoder_attn.q_proj",
    "cross.key": "encoder_attn.k_proj",
    "cross.value": "encoder_attn.v_proj",
    "cross.output": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
}
EPS = 1e-5  # transformers builds these norms with torch's default; no config.json says so


def seq2seq_recipe(config: Mapping) -> dict:
    """Common settings and both stacks; embeddings and where the norms are is the family's own."""
    return {
        "width": config["d_model"],
        "vocabulary": config["vocab_size"],
        "dropout": config.get("dropout", 0.1),
        "eps": EPS,
        "act": act_here(config.get("activation_function", "gelu")),
        "std": config.get("init_std", 0.02),
        **{
            stack: {
                "transformer": {
                    "layers": config[f"{stack}_layers"],
                    "heads": config[f"{stack}_attention_heads"],
                    "inner": config[f"{stack}_ffn_dim"],
                    "attention_dropout": config.get("attention_dropout", 0.0),
                }
            }
            for stack in ("encoder", "decoder")
        },
    }


def seq2seq_config(facts: Facts, start: int, end: int) -> dict:
    """The other way; the length is the family's own.

    Args:
        start: the token before the decoder's first, unless the tokenizer says where a text starts.
        end: the token that ends a text, unless told.
    """
    end = facts.said.get("eos_token_id", end)
    config = {
        "d_model": facts.recipe["width"],
        "vocab_size": facts("target_embedding.word.vocabulary"),
        "dropout": facts("encoder.transformer.dropout"),
        "attention_dropout": facts.attention_dropout("encoder.transformer"),
        "activation_function": act_there(facts("encoder.transformer.act")),
        "init_std": facts.common("std", 0.02),
        "is_encoder_decoder": True,
        "eos_token_id": end,
        "forced_eos_token_id": end,
        "decoder_start_token_id": start_token(facts, start),
        "tie_word_embeddings": facts.tied,
    }
    for stack in ("encoder", "decoder"):
        settings = facts.settings(stack, "transformer")
        config[f"{stack}_layers"] = settings["layers"]
        config[f"{stack}_attention_heads"] = settings["heads"]
        config[f"{stack}_ffn_dim"] = settings["inner"]
    return config


def stack_rules(facts: Facts) -> list[Rule]:
    """The layers of encoder and decoder."""
    rules = []
    for stack, table in (("encoder", LAYER), ("decoder", LAYER | CROSS)):
        count = facts(f"{stack}.transformer.layers")
        rules += layers(count, f"model.{stack}.layers.{{}}", f"{stack}.layers.{{}}", table)
    return rules


def head_rules(facts: Facts) -> list[Rule]:
    """The head over all words: its bias, zeros in a file where ours has none, and its matrix unless tied."""
    if not facts.has("target", "lm"):
        return []
    rules = [] if facts.tied else [same("lm_head.weight", "targets.lm.head.weight")]
    if facts("target.lm.head_bias"):
        return [*rules, viewed("final_logits_bias", "targets.lm.head.bias", file=(1, -1), model=(-1,))]
    return [*rules, zeros("final_logits_bias", (1, facts("target_embedding.word.vocabulary")))]
