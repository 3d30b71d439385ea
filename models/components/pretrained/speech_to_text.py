"""S2T: convolutions over filter banks, then encoder and decoder with norms before each layer and fixed sinusoids.

Source: Wang et al., 2020, arXiv:2010.05171; tensors as `Speech2TextForConditionalGeneration.save_pretrained` names
them. Recordings without padding give transformers' numbers. Beside padding ours gives those of the recording alone;
transformers' second convolution reads what its first makes of the padding.
"""

from collections.abc import Collection, Mapping

from models.components.pretrained._family import Facts, Family, causal_target, padding, require
from models.components.pretrained._names import Rule, linear, same
from models.components.pretrained._seq2seq import seq2seq_config, seq2seq_recipe, stack_rules

__all__ = ["SpeechToText"]


class SpeechToText(Family):
    kinds = ("speech_to_text",)
    bare = "Speech2TextModel"
    classes = {("lm",): "Speech2TextForConditionalGeneration"}
    prefix = "model"
    table = "model.decoder.embed_tokens.weight"
    buffers = r"embed_positions\.weights$"

    def recipe(self, config: Mapping) -> dict:
        require(config, {"scale_embedding": True, "input_channels": 1})
        waves = {"reached": True, "start": config.get("pad_token_id", 1) + 1, "counted": True}
        speech = {
            "features": config.get("input_feat_per_channel", 80),
            "channels": config["conv_channels"],
            "kernels": list(config["conv_kernel_sizes"]),
        }
        recipe = seq2seq_recipe(config)
        for stack in ("encoder", "decoder"):
            recipe[stack]["transformer"]["norm_first"] = True
        return recipe | {
            "embedding": {"speech": speech, "sinusoidal": waves, "norm": "none"},
            "target_embedding": {"word": {}, "sinusoidal": dict(waves), "norm": "none"},
        }

    def targets(self, config: Mapping, names: Collection[str]) -> dict:
        return causal_target(config, names)

    def config(self, facts: Facts) -> dict:
        speech = facts.settings("embedding", "speech")
        return seq2seq_config(facts, start=2, end=2) | {
            "input_feat_per_channel": speech["features"],
            "input_channels": 1,
            "conv_channels": speech["channels"],
            "conv_kernel_sizes": list(speech["kernels"]),
            "num_conv_layers": len(speech["kernels"]),
            "scale_embedding": True,
            "pad_token_id": padding(facts, "target_embedding.sinusoidal.start"),
        }

    def rules(self, facts: Facts) -> list[Rule]:
        rules = [same(self.table, "target_embedding.word.weight"), *stack_rules(facts)]
        for i in range(len(facts("embedding.speech.kernels"))):
            rules += linear(f"model.encoder.conv.conv_layers.{i}", f"embedding.speech.layers.{i}")
        for stack in ("encoder", "decoder"):
            rules += linear(f"model.{stack}.layer_norm", f"{stack}.norm")
        return rules if facts.tied else [*rules, same(self.head, "targets.lm.head.weight")]
