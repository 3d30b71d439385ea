"""What saved language models answer to two pinned texts, asked in a process that has none of this repository.

    python -P recall.py FOLDER OUT.safetensors [FOLDER OUT.safetensors ...]

A FOLDER is a transformers layout (plain `from_pretrained`) or an MLflow model (`mlflow.transformers.load_model`). Equal
files give equal answers, so a registered version can be compared with the folder that was judged.
"""

import json
import os
import sys
from pathlib import Path

__all__ = ["recall"]

TEXTS = ("The wooden chair is as good as new.", "九成新的木椅，可以面交。")
LONGEST = 16  # tokens: any row length that was trained on has them


def recall(folder: Path) -> tuple[dict, dict]:
    """Ask a model.

    Returns:
        name -> tensor: the token ids of each text, and every tensor of the model's output on them.
        what was seen when it was loaded: class, names of tensors that the file lacks, has too many, or in another
        shape; for a plain folder also what `AutoModel` lacks, and which of its tensors differ from the class's own.

    Raises:
        ValueError: the tokenizer gives ids that the model has no row for.
    """
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    if (folder / "MLmodel").is_file():
        import mlflow

        parts = mlflow.transformers.load_model(str(folder), return_type="components")
        model, tokenizer, seen = parts["model"], parts.get("tokenizer"), {}
    else:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        kind = getattr(transformers, config.architectures[0])
        model, loading = kind.from_pretrained(
            folder, output_loading_info=True, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
        seen = {name: _names(loading.get(f"{name}_keys")) for name in ("missing", "unexpected", "mismatched")}
        tokenized = (folder / "tokenizer_config.json").is_file()
        tokenizer = (
            transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            if tokenized
            else None
        )
    model.eval()
    rows = [_inputs(model, tokenizer, text) for text in TEXTS]
    found = {f"ids.{index}": row["input_ids"] for index, row in enumerate(rows) if "input_ids" in row}
    with torch.inference_mode():
        for index, row in enumerate(rows):
            answer = model(**row).to_tuple()
            found |= {f"answer.{index}.{place}": part.clone().float() for place, part in enumerate(answer)
                      if isinstance(part, torch.Tensor)}  # fmt: skip
    if seen:
        seen |= _plain(folder, model)
    return found, seen | {"class": type(model).__name__}


def _inputs(model, tokenizer, text: str) -> dict:
    """One row for whatever the model reads: token ids, pixels or frames; the same in every process."""
    import torch

    config, row = model.config, {}
    images = getattr(config, "vision_config", config if model.main_input_name == "pixel_values" else None)
    if tokenizer is not None:
        ids = torch.tensor([tokenizer(text)["input_ids"][:LONGEST]])
        ids = ids[:, None] if type(model).__name__.endswith("ForMultipleChoice") else ids  # one choice
        rows = model.get_input_embeddings().weight.shape[0]
        if int(ids.max()) >= rows:
            raise ValueError(f"the tokenizer gives id {int(ids.max())}, the model has {rows} rows: they do not match")
        row["input_ids"] = ids
    if images is not None:
        size = images.image_size if isinstance(images.image_size, int) else images.image_size[0]
        row["pixel_values"] = torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size)
    if model.main_input_name == "input_features":
        row = {"input_features": torch.linspace(-1, 1, 64 * config.input_feat_per_channel).view(1, 64, -1)}
    if config.is_encoder_decoder:
        start = config.decoder_start_token_id or 0
        row["decoder_input_ids"] = torch.tensor([[start, start + 1, start + 2]])
    return row


def _plain(folder: Path, model) -> dict:
    """What plain `AutoModel` makes of the folder: the body of the class, tensor for tensor."""
    import torch
    import transformers

    plain, loading = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    lacking = _names(loading.get("missing_keys"))
    own, prefix = model.state_dict(), f"{model.base_model_prefix}."
    pairs = {name: (part, own.get(prefix + name, own.get(name))) for name, part in plain.state_dict().items()}
    other = [name for name, (part, there) in pairs.items() if there is not None and not torch.equal(part, there)]
    return {"plain_class": type(plain).__name__, "plain_missing": lacking, "plain_other": sorted(other)}


def _names(keys) -> list[str]:
    return sorted(str(key) for key in keys or ())


def main(*words: str) -> None:
    """python -P recall.py FOLDER OUT.safetensors [FOLDER OUT.safetensors ...]"""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
        os.environ[name] = "1"
    for folder, out in zip(words[::2], words[1::2], strict=True):
        _save(*recall(Path(folder)), out)


def _save(found: dict, seen: dict, out: str) -> None:
    from safetensors.torch import save_file

    save_file({name: part.contiguous() for name, part in found.items()}, out, {"seen": json.dumps(seen)})


if __name__ == "__main__":
    main(*sys.argv[1:])
