"""BART: encoder and decoder with norms after each layer and over the embedding; positions from the table's row 2 on.

Source: Lewis et al., 2019, arXiv:1910.13461; tensors as `BartForConditionalGeneration.save_pretrained` names them.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import Facts, Family, causal_target, require
from models.components.pretrained._names import Rule, linear, same
from models.components.pretrained._seq2seq import head_rules, seq2seq_config, seq2seq_recipe, stack_rules

__all__ = ["Bart"]

START = 2  # rows of the position table before the first place's, which nothing reads


class Bart(Family):
    kinds = ("bart",)
    bare = "BartModel"
    classes = {("lm",): "BartForConditionalGeneration"}
    prefix = "model"
    table = "model.shared.weight"
    twice = {f"model.{stack}.embed_tokens.weight": "model.shared.weight" for stack in ("encoder", "decoder")}

    def recipe(self, config: Mapping) -> dict:
        require(config, {"scale_embedding": False})
        position = {"length": config["max_position_embeddings"] + START, "start": START}
        return seq2seq_recipe(config) | {
            "embedding": {"word": {}, "position": position},
            "target_embedding": {"word": {}, "position": dict(position)},
            "share": True,
        }

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return {name: {"head_bias": "final_logits_bias" in names} for name in causal_target(config, names)}

    def config(self, facts: Facts) -> dict:
        length = facts("embedding.position.length") - START
        return seq2seq_config(facts, start=2, end=2) | {"max_position_embeddings": length, "scale_embedding": False}

    def rules(self, facts: Facts) -> list[Rule]:
        rules = [same(self.table, "embedding.word.weight"), *stack_rules(facts)]
        for stack, ours in (("encoder", "embedding"), ("decoder", "target_embedding")):
            rules.append(same(f"model.{stack}.embed_positions.weight", f"{ours}.position.weight"))
            rules += linear(f"model.{stack}.layernorm_embedding", f"{ours}.norm")
        return rules + head_rules(facts)
