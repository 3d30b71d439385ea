"""PEGASUS: encoder and decoder with norms before each layer, fixed sinusoids, all sines before all cosines.

Source: Zhang et al., 2019, arXiv:1912.08777; tensors as `PegasusForConditionalGeneration.save_pretrained` names them,
which spells the sinusoids out.
"""

from collections.abc import Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from models.components.pretrained._family import Facts, Family, causal_target, require
from models.components.pretrained._names import Rule, computed, linear, same
from models.components.pretrained._seq2seq import head_rules, seq2seq_config, seq2seq_recipe, stack_rules

__all__ = ["Pegasus", "sinusoids"]


class Pegasus(Family):
    kinds = ("pegasus",)
    bare = "PegasusModel"
    classes = {("lm",): "PegasusForConditionalGeneration"}
    prefix = "model"
    table = "model.shared.weight"
    twice = {f"model.{stack}.embed_tokens.weight": "model.shared.weight" for stack in ("encoder", "decoder")}

    def recipe(self, config: Mapping) -> dict:
        require(config, {"scale_embedding": True} if "scale_embedding" in config else {})
        recipe = seq2seq_recipe(config) | {"share": True}
        for stack, ours in (("encoder", "embedding"), ("decoder", "target_embedding")):
            recipe[stack]["transformer"]["norm_first"] = True
            recipe[ours] = {"word": {}, "sinusoidal": {}, "norm": "none"}
        return recipe

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return {name: {"head_bias": "final_logits_bias" in names} for name in causal_target(config, names)}

    def config(self, facts: Facts) -> dict:
        return seq2seq_config(facts, start=0, end=1) | {
            "max_position_embeddings": self.length(facts),
            "scale_embedding": True,
        }

    @staticmethod
    def length(facts: Facts) -> int:
        """Rows of the file's table: a recipe with sinusoids has no longest row."""
        return facts.said.get("max_position_embeddings", 1024)

    def rules(self, facts: Facts) -> list[Rule]:
        rules = [same(self.table, "embedding.word.weight"), *stack_rules(facts)]
        for stack in ("encoder", "decoder"):
            table = partial(sinusoids, self.length(facts), facts.recipe["width"])
            rules.append(computed(f"model.{stack}.embed_positions.weight", table))
            rules += linear(f"model.{stack}.layer_norm", f"{stack}.norm")
        return rules + head_rules(facts)


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) float32: sin, then cos, of position / 10000^(2i / width)."""
    step = torch.arange(0, width, 2, dtype=torch.float64) / width
    angle = torch.arange(length, dtype=torch.float64)[:, None] / 10000.0**step
    return torch.cat([angle.sin(), angle.cos()], -1).float()
