"""Marian, the Transformer of machine translation: norms after each layer, fixed sinusoids, none of them in the file.

Source: Vaswani et al., 2017, arXiv:1706.03762; Junczys-Dowmunt et al., 2018, arXiv:1804.00344; tensors as
`MarianMTModel.save_pretrained` names them. Its sines stand before its cosines, as in PEGASUS.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import Facts, Family, causal_target, require
from models.components.pretrained._names import Rule, same
from models.components.pretrained._seq2seq import head_rules, seq2seq_config, seq2seq_recipe, stack_rules

__all__ = ["Marian"]


class Marian(Family):
    kinds = ("marian",)
    bare = "MarianModel"
    classes = {("lm",): "MarianMTModel"}
    prefix = "model"
    table = "model.shared.weight"
    twice = {f"model.{stack}.embed_tokens.weight": "model.shared.weight" for stack in ("encoder", "decoder")}
    buffers = r"embed_positions\.weight$"

    def recipe(self, config: Mapping) -> dict:
        require({"scale_embedding": False} | dict(config), {"scale_embedding": True})
        require(config, {"share_encoder_decoder_embeddings": True})
        sinusoids = {"word": {}, "sinusoidal": {}, "norm": "none"}
        return seq2seq_recipe(config) | {"embedding": sinusoids, "target_embedding": sinusoids, "share": True}

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return {name: {"head_bias": "final_logits_bias" in names} for name in causal_target(config, names)}

    def config(self, facts: Facts) -> dict:
        words = {"pad_token_id": 0, "decoder_vocab_size": facts("target_embedding.word.vocabulary")}
        switches = {"scale_embedding": True, "share_encoder_decoder_embeddings": True}
        return seq2seq_config(facts, start=0, end=0) | words | switches

    def rules(self, facts: Facts) -> list[Rule]:
        return [same(self.table, "embedding.word.weight"), *stack_rules(facts), *head_rules(facts)]
