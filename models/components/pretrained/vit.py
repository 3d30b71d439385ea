"""ViT: patches behind a class vector, norms before each layer, a linear head on the class vector.

Source: Dosovitskiy et al., 2020, arXiv:2010.11929; tensors as files of `ViTForImageClassification.save_pretrained` have
them, whose names are not those of its state_dict().
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._encoders import head_config, stack_config, stack_recipe
from models.components.pretrained._family import Facts, Family, labels, require
from models.components.pretrained._names import Rule, layers, linear, viewed

__all__ = ["Vit"]

LAYER = {
    "attention.query": "attention.attention.query",
    "attention.key": "attention.attention.key",
    "attention.value": "attention.attention.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "layernorm_before",
    "feedforward.inner": "intermediate.dense",
    "feedforward.outer": "output.dense",
    "feedforward_norm": "layernorm_after",
}


class Vit(Family):
    kinds = ("vit",)
    bare = "ViTModel"
    classes = {("cls",): "ViTForImageClassification"}
    prefix = "vit"

    def recipe(self, config: Mapping) -> dict:
        require(config, {"qkv_bias": True})
        size, image = config["patch_size"], config["image_size"]
        recipe = stack_recipe(config) | {
            "embedding": {
                "patch": {"size": size, "image": image, "channels": config.get("num_channels", 3)},
                "position": {"length": 1 + (image // size) ** 2},
                "norm": "none",
            }
        }
        recipe["encoder"]["transformer"]["norm_first"] = True
        return recipe

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        if "classifier.weight" not in names:
            return {}
        return {"cls": {"labels": labels(config), "transform": False, "dropout": 0.0}}

    def config(self, facts: Facts) -> dict:
        patch = facts.settings("embedding", "patch")
        sizes = {"patch_size": patch["size"], "image_size": patch["image"], "num_channels": patch["channels"]}
        return stack_config(facts) | sizes | {"qkv_bias": True} | head_config(facts)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = linear("vit.embeddings.patch_embeddings.projection", "embedding.patch")
        rules.append(viewed("vit.embeddings.cls_token", "embedding.patch.cls", (1, 1, -1), (-1,)))
        width = facts.recipe["width"]
        table = ("vit.embeddings.position_embeddings", "embedding.position.weight")
        rules.append(viewed(*table, (1, -1, width), (-1, width)))
        rules += layers(facts("encoder.transformer.layers"), "vit.encoder.layer.{}", "encoder.layers.{}", LAYER)
        rules += linear("vit.layernorm", "encoder.norm")
        return rules + (linear("classifier", "targets.cls.head") if facts.has("target", "cls") else [])
