"""T5, also 1.1: RMS norms before each layer, distances in buckets shared by all layers, no scale, no biases.

Source: Raffel et al., 2019, arXiv:1910.10683; gated layers: Shazeer, 2020, arXiv:2002.05202; tensors as
`T5ForConditionalGeneration.save_pretrained` names them. Whether states are rescaled before the head is
scale_decoder_outputs in config.json since transformers 5, and was tie_word_embeddings before.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import Facts, Family, act_here, act_there, causal_target, start_token
from models.components.pretrained._names import Rule, layers, same

__all__ = ["T5"]

GATED = "gated-"


class T5(Family):
    kinds = ("t5",)
    bare = "T5Model"
    classes = {("lm",): "T5ForConditionalGeneration"}
    table = "shared.weight"
    ties = None
    twice = {f"{stack}.embed_tokens.weight": "shared.weight" for stack in ("encoder", "decoder")}
    buffers = r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"

    def recipe(self, config: Mapping) -> dict:
        kind = config.get("feed_forward_proj", "relu")
        gated = kind.startswith(GATED)
        # transformers takes gated-gelu to mean the approximation that the authors trained with
        act = "gelu_tanh" if kind == "gated-gelu" else act_here(kind.removeprefix(GATED))
        depth = {"encoder": config["num_layers"], "decoder": config.get("num_decoder_layers") or config["num_layers"]}
        return {
            "width": config["d_model"],
            "vocabulary": config["vocab_size"],
            "dropout": config.get("dropout_rate", 0.1),
            "eps": config.get("layer_norm_epsilon", 1e-6),
            "act": act,
            "embedding": {"word": {}, "norm": "none"},
            "target_embedding": {"word": {}, "norm": "none"},
            **{
                stack: {
                    "transformer": {
                        "layers": count,
                        "heads": config["num_heads"],
                        "head_width": config["d_kv"],
                        "inner": config["d_ff"],
                        "norm_first": True,
                        "norm": "t5",
                        "gated": gated,
                        "bias": False,
                        "scale": False,
                        "positions": "relative",
                        "buckets": config.get("relative_attention_num_buckets", 32),
                        "distance": config.get("relative_attention_max_distance", 128),
                    }
                }
                for stack, count in depth.items()
            },
            "share": True,
        }

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        rescale = config.get("scale_decoder_outputs", config.get("tie_word_embeddings", True))
        return {name: {"rescale": rescale} for name in causal_target(config, names)}

    def config(self, facts: Facts) -> dict:
        stack = facts.settings("encoder", "transformer")
        rescale = facts("target.lm.rescale") if facts.has("target", "lm") else True
        act = "gelu" if stack["gated"] and stack["act"] == "gelu_tanh" else act_there(stack["act"])
        return {
            "d_model": facts.recipe["width"],
            "vocab_size": facts("embedding.word.vocabulary"),
            "dropout_rate": stack["dropout"],
            "layer_norm_epsilon": stack["eps"],
            "feed_forward_proj": f"{GATED if stack['gated'] else ''}{act}",
            "num_layers": stack["layers"],
            "num_decoder_layers": facts("decoder.transformer.layers"),
            "num_heads": stack["heads"],
            "d_kv": stack["head_width"] or facts.recipe["width"] // stack["heads"],
            "d_ff": stack["inner"],
            "relative_attention_num_buckets": stack["buckets"],
            "relative_attention_max_distance": stack["distance"],
            "is_encoder_decoder": True,
            "scale_decoder_outputs": rescale,
            "tie_word_embeddings": facts.tied,
            "decoder_start_token_id": start_token(facts, 0),
        }

    def rules(self, facts: Facts) -> list[Rule]:
        rules = [same(self.table, "embedding.word.weight")]
        for stack in ("encoder", "decoder"):
            count, gated = facts(f"{stack}.transformer.layers"), facts(f"{stack}.transformer.gated")
            table = _layer(stack == "decoder", gated)
            rules += layers(count, f"{stack}.block.{{}}.layer", f"{stack}.layers.{{}}", table, bias=False)
            first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
            rules.append(same(first, f"{stack}.relative.weight"))
            rules.append(same(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight"))
        if not facts.tied:
            rules.append(same(self.head, "targets.lm.head.weight"))
        return rules


def _layer(cross: bool, gated: bool) -> dict[str, str]:
    """Our names in a layer -> the file's."""
    kinds = [("attention", "0.SelfAttention")] + ([("cross", "1.EncDecAttention")] if cross else [])
    table = {}
    for number, (ours, theirs) in enumerate(kinds):
        for name in ("query", "key", "value", "output"):
            table[f"{ours}.{name}"] = f"{theirs}.{name[0]}"
        table[f"{ours}_norm"] = f"{number}.layer_norm"
    last = len(kinds)
    inner = {"inner": "wi_1", "gate": "wi_0"} if gated else {"inner": "wi"}
    table |= {
        f"feedforward.{ours}": f"{last}.DenseReluDense.{name}" for ours, name in (inner | {"outer": "wo"}).items()
    }
    return table | {"feedforward_norm": f"{last}.layer_norm"}
