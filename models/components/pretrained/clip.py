"""CLIP: a causal text encoder beside a vision encoder, both projected into one space.

Source: Radford et al., 2021, arXiv:2103.00020; tensors as `CLIPModel.save_pretrained` names them. The text's vector is
that of its last real place, which is its end mark where the tokenizer puts one there, as CLIP's does.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import Facts, Family, act_here, act_there
from models.components.pretrained._files import CheckpointRejected
from models.components.pretrained._names import Rule, layers, linear, same, viewed

__all__ = ["Clip"]

MARKS = ("bos_token_id", "eos_token_id", "pad_token_id")
LEGACY = 2  # the end mark of early config files, whatever their tokenizer's was
LAYER = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "attention_norm": "layer_norm1",
    "feedforward.inner": "mlp.fc1",
    "feedforward.outer": "mlp.fc2",
    "feedforward_norm": "layer_norm2",
}


class Clip(Family):
    kinds = ("clip",)
    classes = {("clr",): "CLIPModel"}

    def recipe(self, config: Mapping) -> dict:
        text, vision = config["text_config"], config["vision_config"]
        size, image = vision["patch_size"], vision["image_size"]
        patch = {"size": size, "image": image, "channels": vision.get("num_channels", 3), "bias": False}
        eps = vision.get("layer_norm_eps", 1e-5)
        first = {"word": {}, "position": {"length": text["max_position_embeddings"]}, "norm": "none"}
        second = {"patch": patch, "position": {"length": 1 + (image // size) ** 2}, "norm": "layer", "eps": eps}
        return {
            "width": text["hidden_size"],
            "widths": [text["hidden_size"], vision["hidden_size"]],
            "vocabulary": text["vocab_size"],
            "dropout": 0.0,
            "std": text.get("initializer_range", 0.02),
            "embedding": {"dual": {"first": first, "second": second}},
            "encoder": {
                "dual": {
                    "first": {"transformer": _stack(text) | {"mask": "causal"}},
                    "second": {"transformer": _stack(vision)},
                }
            },
        }

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        if "text_projection.weight" not in names:
            return {}
        return {"clr": {"features": config["projection_dim"], "pools": ["last", "first"]}}

    def config(self, facts: Facts) -> dict:
        first, second = facts.streams()
        patch, features = second.settings("embedding", "patch"), facts("target.clr.features")
        text = {
            "vocab_size": first("embedding.word.vocabulary"),
            "max_position_embeddings": first("embedding.position.length"),
        }
        text |= {key: facts.said[key] for key in MARKS if facts.said.get(key) is not None}
        if text.get("eos_token_id") == LEGACY and text["vocab_size"] != LEGACY + 1:
            raise CheckpointRejected(
                f"with the end mark {LEGACY} transformers reads a text at its highest id, not at its end; use a "
                f"tokenizer whose end mark has another id"
            )
        vision = {"patch_size": patch["size"], "image_size": patch["image"], "num_channels": patch["channels"]}
        both = {"projection_dim": features}
        return both | {
            "text_config": _config(first) | text | both | {"model_type": "clip_text_model"},
            "vision_config": _config(second) | vision | both | {"model_type": "clip_vision_model"},
        }

    def rules(self, facts: Facts) -> list[Rule]:
        first, second = (stream("encoder.transformer.layers") for stream in facts.streams())
        text, image = "text_model.embeddings", "vision_model.embeddings"
        return [
            same(f"{text}.token_embedding.weight", "embedding.dual.first.word.weight"),
            same(f"{text}.position_embedding.weight", "embedding.dual.first.position.weight"),
            same(f"{image}.patch_embedding.weight", "embedding.dual.second.patch.weight"),
            same(f"{image}.class_embedding", "embedding.dual.second.patch.cls"),
            same(f"{image}.position_embedding.weight", "embedding.dual.second.position.weight"),
            *linear("vision_model.pre_layrnorm", "embedding.dual.second.norm"),
            *layers(first, "text_model.encoder.layers.{}", "encoder.first.layers.{}", LAYER),
            *layers(second, "vision_model.encoder.layers.{}", "encoder.second.layers.{}", LAYER),
            *linear("text_model.final_layer_norm", "encoder.first.norm"),
            *linear("vision_model.post_layernorm", "encoder.second.norm"),
            same("text_projection.weight", "targets.clr.first.weight"),
            same("visual_projection.weight", "targets.clr.second.weight"),
            viewed("logit_scale", "targets.clr.scale", (), (1,)),
        ]


def _stack(config: Mapping) -> dict:
    return {
        "layers": config["num_hidden_layers"],
        "heads": config["num_attention_heads"],
        "inner": config["intermediate_size"],
        "norm_first": True,
        "eps": config.get("layer_norm_eps", 1e-5),
        "act": act_here(config.get("hidden_act", "quick_gelu")),
        "attention_dropout": config.get("attention_dropout", 0.0),
    }


def _config(stream: Facts) -> dict:
    stack = stream.settings("encoder", "transformer")
    return {
        "hidden_size": stream.recipe["width"],
        "num_hidden_layers": stack["layers"],
        "num_attention_heads": stack["heads"],
        "intermediate_size": stack["inner"],
        "layer_norm_eps": stack["eps"],
        "hidden_act": act_there(stack["act"]),
        "attention_dropout": stream.attention_dropout("encoder.transformer"),
        "initializer_range": stream.common("std", 0.02),
    }
