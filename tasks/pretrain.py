"""Pre-train a recipe on a data set's tokens, export it in transformers' layout, and prove the export equal.

    python -m tasks.pretrain params.yaml:language bert artifacts/tokens/corpora artifacts/tokenizer OUT CHECKPOINTS

Under torchrun the same command trains on several ranks. Stopped by SIGTERM it exits 75, which the flows try again, and
then continues; so it does after any crash.
"""

import hashlib
import math
import os
import resource
import shutil
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import models
from models import parallel
from models.components._model import assemble
from models.flops import flops_of
from tasks import track
from tasks.command import run as command
from tasks.curve import write_curve
from tasks.engine import Engine, HeldOut, Run, launched, run
from tasks.files import digest, new_folder, read_json, write_json
from tasks.flavor import check_folder
from tasks.recipes import Recipe, read_recipe
from tasks.settings import SettingsError, check_names
from tasks.settings import read as read_settings
from tasks.slots import slot
from tasks.source import Source, open_source
from tasks.tokenizer import Vocabulary, copy_tokenizer
from tasks.training import use_threads

__all__ = ["compare", "export", "pretrain", "rows_digest"]

KEYS = ("recipe", "size", "overrides", "data", "length", "training", "start")
FREE = ("dropout", "attention_dropout", "std")  # of a recipe: what another run may set otherwise over equal weights
PROBE_ROWS = 4
CLOSE = 1e-5  # of the largest logit: what is left to the order of float32 sums
THEIRS = {  # our fields -> transformers' arguments
    "ids": "input_ids",
    "mask": "attention_mask",
    "segments": "token_type_ids",
    "target_ids": "decoder_input_ids",
    "target_mask": "decoder_attention_mask",
    "pixels": "pixel_values",
}
LOGITS = {  # our targets -> where transformers' output has their logits, the first that is there
    "mlm": ("prediction_logits", "logits"),
    "lm": ("logits",),
    "sp": ("seq_relationship_logits", "sop_logits"),
    "cls": ("logits",),
}


def pretrain(language: Mapping, name: str, tokens: Path, tokenizer: Path, out: Path, checkpoints: Path) -> Path | None:
    """Train `language["pretrain"][name]` and write its folder.

    Args:
        language: the part of params.yaml with `pretrain`: {name: {size, data, length, training, recipe, overrides,
            start}}, where `recipe` is the name unless it says otherwise. `start`, a folder or models:/<name>@champion,
            has the weights to go on from: of the same recipe, size and tokenizer.
        tokens: folder of the data set's tokens, with train/ and heldout/.
        tokenizer: folder of the tokenizer that made them.
        checkpoints: of this run; emptied when it is done.

    Returns:
        `out`: model/, recipe.json, run.json, metrics.json, curve.csv, curve.png. None if SIGTERM ended the run early.

    Raises:
        ValueError, LookupError: settings, recipe, data or tokenizer that cannot work; nothing is written.
        Diverged, DataChanged: see tasks/engine.py; the checkpoints stay.
    """
    use_threads()
    chosen = _chosen(language, name)
    training, length = Engine.read(chosen.get("training") or {}), chosen["length"]
    vocabulary = Vocabulary.open(tokenizer)
    recipe = _recipe(chosen, name, vocabulary)
    source, heldout = (open_source(tokens, recipe.processor, tokenizer, length, training.seed, heldout=held)
                       for held in (False, True))  # fmt: skip
    torch.manual_seed(training.seed)
    model = assemble(recipe.model)
    started = _go_on(model, recipe, vocabulary, str(chosen["start"])) if chosen.get("start") else None
    # A run is known by what decides its result but the data, whose change the engine refuses in the midst of a run.
    known = f"{recipe.digest} {sorted(training.decisive.items())} {digest(Path(models.__file__).parent)} {started}"
    kept = checkpoints / hashlib.sha256(known.encode()).hexdigest()[:16]
    with launched() as device, slot() if device is None else nullcontext(device) as device:
        if recipe.transformers and parallel.rank() == 0:
            _rehearse(model, recipe, vocabulary)
        model.to(device)
        flops, parameters = flops_of(model, length), sum(parameter.numel() for parameter in model.parameters())
        held = HeldOut(heldout, training, device)
        done = run(model, source, training, held, kept, name, device, flops)
        if done.stopped:
            return None
        found, weights = held(model), parallel.full_state(model)
        if parallel.rank() != 0:
            return out
    if not started:
        _judge_start(name, done, vocabulary.size)
    about = {
        "name": name,
        "recipe": recipe.name,
        "size": chosen.get("size"),
        "family": recipe.transformers,
        "recipe_digest": recipe.digest,
        "parameters": parameters,
        "data": chosen["data"],
        "start": chosen.get("start"),
        "start_content": started,
        "tokenizer": vocabulary.sha256,
        "length": length,
        "trained_on": source.fingerprint,
        "fingerprint": rows_digest(heldout, held.rows),  # of what the metrics speak of
        "evaluated_rows": held.rows,
        "training": training.decisive,
        "seed": training.seed,
        **done.told(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "precision": training.precision,
    }
    with new_folder(out) as folder:
        report = export(weights, recipe, vocabulary, tokenizer, folder / "model", heldout.rows(range(PROBE_ROWS)))
        write_json(folder / "recipe.json", {"name": recipe.name, "model": recipe.model, "processor": recipe.processor,
                                            "transformers": recipe.transformers, "digest": recipe.digest})  # fmt: skip
        write_json(folder / "run.json", about)
        write_json(folder / "metrics.json", {"heldout": found, "export": report})
        write_curve(folder, done.curve, "lr")
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"{name}: {parameters:,} parameters, {done.tokens:,} tokens in {done.seconds:.0f} s; held-out "
          + ", ".join(f"{key} {value:.4f}" for key, value in found.items())
          + f"; export off by {report['max_difference']:.1e}")  # fmt: skip
    return out


def rows_digest(heldout: Source, rows: int) -> str:
    """Of the first `rows` of a held-out source: equal digests, equal rows, and losses on them can be compared."""
    return hashlib.sha256(f"{heldout.fingerprint} {heldout.seed} {rows}".encode()).hexdigest()


def export(
    weights: Mapping[str, Tensor],
    recipe: Recipe,
    vocabulary: Vocabulary,
    tokenizer: Path,
    folder: Path,
    probe: Mapping[str, Tensor],
    config: Mapping | None = None,
) -> dict:
    """Write a model's folder: in transformers' layout where it has such a model, else recipe.json and our weights.

    Args:
        weights: of `models.parallel.full_state`.
        tokenizer: folder whose files go beside the model.
        probe: a batch on which model and export must agree.
        config: entries of config.json besides the special tokens.

    Returns:
        {"max_difference": of the logits, "equal": whether that is rounding}.

    Raises:
        CheckpointRejected: transformers has no such model.
        ValueError: what was written does not give the same logits.
    """
    model = assemble(recipe.model)
    parallel.load_state(model, weights)
    folder.mkdir(parents=True, exist_ok=True)
    if recipe.transformers:
        from models.components.pretrained import save

        save(model.eval(), recipe.model, folder, recipe.transformers, _special(vocabulary) | dict(config or {}))
    else:
        write_json(folder / "recipe.json", recipe.model)
        save_file(dict(weights), folder / "model.safetensors")
    copy_tokenizer(tokenizer, folder, recipe.model.get("embedding") or {})
    report = compare(model, recipe, folder, probe)
    if not report["equal"]:
        raise ValueError(f"{recipe.name}: the exported logits are off by {report['max_difference']:.3g}; nothing was "
                         f"written. Mend models/components/pretrained/{recipe.transformers}.py")  # fmt: skip
    return report


@torch.no_grad()
def compare(model: nn.Module, recipe: Recipe, folder: Path, probe: Mapping[str, Tensor]) -> dict:
    """Largest difference of logits between a model and its exported folder, at the real places of a batch.

    Rows that hold several documents are read as one: transformers has no field for it.
    """
    batch = {field: probe[field] for field in (*THEIRS, "frames", "frame_mask", "masked_patches") if field in probe}
    model.eval()
    if recipe.transformers:
        theirs = _transformers_logits(folder, recipe.model["target"], batch)
    else:
        again = assemble(recipe.model).eval()
        parallel.load_state(again, load_file(folder / "model.safetensors"))
        batch = {field: value for field, value in probe.items() if not field.startswith("labels_")}
        theirs = {target: again.predict(target, **batch) for target in recipe.model["target"]}
    real = batch.get("target_mask", batch.get("mask"))
    worst, largest = 0.0, 1.0
    for target, reference in theirs.items():
        for ours, other in zip(_parts(model.predict(target, **batch)), _parts(reference), strict=True):
            if real is not None and ours.shape[:2] == real.shape and ours.ndim > 2:
                ours, other = ours[real], other[real]
            worst = max(worst, (ours - other).abs().max().item())
            largest = max(largest, other.abs().max().item())
    return {"max_difference": worst, "equal": worst <= CLOSE * largest, "targets": sorted(theirs)}


def _chosen(language: Mapping, name: str) -> dict:
    runs = language.get("pretrain") or {}
    if name not in runs:
        raise SettingsError(f"language.pretrain has no {name!r}; it has: {', '.join(runs) or 'nothing'}")
    chosen = dict(runs[name] or {})
    check_names(chosen, KEYS, f"language.pretrain.{name}")
    if missing := [key for key in ("data", "length") if key not in chosen]:
        raise SettingsError(f"language.pretrain.{name} lacks {', '.join(missing)}")
    if not isinstance(chosen["length"], int) or chosen["length"] < 2:
        raise SettingsError(
            f"language.pretrain.{name}: length is the tokens of a row, at least 2; got {chosen['length']!r}"
        )
    return chosen


def _recipe(chosen: Mapping, name: str, vocabulary: Vocabulary) -> Recipe:
    """The recipe with the tokenizer's vocabulary; counted positions begin behind the padding's id, as in fairseq."""
    made = lambda overrides: read_recipe(chosen.get("recipe", name), chosen.get("size"), overrides, vocabulary.size)
    own = chosen.get("overrides") or {}
    recipe = made(own)
    position = (recipe.model.get("embedding") or {}).get("position") or {}
    if not position.get("counted") or vocabulary.pad is None or position.get("start") == vocabulary.pad + 1:
        return recipe
    rows = position["length"] - position["start"] + vocabulary.pad + 1
    embedding = own.get("embedding") or {}
    counted = (embedding.get("position") or {}) | {"start": vocabulary.pad + 1, "length": rows}
    return made({**own, "embedding": {**embedding, "position": counted}})


def _go_on(model: nn.Module, recipe: Recipe, vocabulary: Vocabulary, start: str) -> str:
    """Put a start's weights into a new model, and return the SHA-256 of the start's files.

    A target that the start has not learned begins anew; everything else must be there.

    Raises:
        SettingsError: another tokenizer, another recipe, or weights that do not fit; says which.
        RegistryError: there is no such version.
    """
    with TemporaryDirectory() as place:
        folder = Path(start)
        if start.startswith("models:/"):
            folder = track.model_files(track.resolve(start), Path(place) / "version")
        folder = folder / "model" if (folder / "model").is_dir() else folder
        if not (folder / "model.safetensors").is_file():
            raise SettingsError(f"start: {start} has no model.safetensors; give a folder of tasks/pretrain.py or of "
                                f"transformers, or models:/<name>@champion")  # fmt: skip
        if (theirs := Vocabulary.open(folder)).sha256 != vocabulary.sha256:
            raise SettingsError(f"start: {start} reads with another tokenizer ({theirs.size:,} ids, "
                                f"{theirs.sha256[:12]}) than this run ({vocabulary.size:,}, {vocabulary.sha256[:12]}): "
                                f"its words would mean something else. Set language.tokenizer to {{pretrained: <its "
                                f"folder>}}, or leave start out")  # fmt: skip
        if check_folder(folder):
            from models.components.pretrained import read

            found = read(folder)
            described, state = found.recipe, found.state
        else:
            described, state = read_json(folder / "recipe.json"), load_file(folder / "model.safetensors")
        content = digest(folder)
    own, described = recipe.model, dict(described)
    if other := [told for part in ("embedding", "encoder", "decoder", "act", "eps", "width")
                 for told in _differences(described.get(part), own.get(part), part)]:  # fmt: skip
        raise SettingsError(f"start: {start} is another model than recipe {recipe.name}: {'; '.join(other[:5])}")
    wanted = model.state_dict()
    absent = [name for name in wanted if name not in state]
    odd = [name for name in wanted if name in state and state[name].shape != wanted[name].shape]
    if odd or any(not name.startswith("targets.") for name in absent):
        listed = ", ".join([*odd, *absent][:5])
        raise SettingsError(f"start: {start} lacks tensors of recipe {recipe.name}, or has them in another shape: "
                            f"{listed}")  # fmt: skip
    model.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    print(f"goes on from {start} ({content[:12]}); new: {', '.join(absent) or 'nothing'}")
    return content


def _differences(theirs, ours, where: str) -> list[str]:
    """What two descriptions of a part both say, and say otherwise.

    >>> _differences({"heads": 2, "dropout": 0.1}, {"heads": 4, "dropout": 0.0, "bias": True}, "encoder")
    ['encoder.heads is 2, not 4']
    """
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        shared = [key for key in theirs if key in ours and key not in FREE]
        return [told for key in shared for told in _differences(theirs[key], ours[key], f"{where}.{key}")]
    both = theirs is not None and ours is not None
    return [f"{where} is {theirs}, not {ours}"] if both and theirs != ours else []


def _rehearse(model: nn.Module, recipe: Recipe, vocabulary: Vocabulary) -> None:
    """Export once before training: a recipe that transformers cannot have should not cost a run."""
    from models.components.pretrained import save

    with TemporaryDirectory() as folder:
        save(model, recipe.model, folder, recipe.transformers, _special(vocabulary))


def _special(vocabulary: Vocabulary) -> dict[str, int]:
    """The tokenizer's ids in config.json."""
    found = {"pad_token_id": vocabulary.pad, "bos_token_id": vocabulary.start, "eos_token_id": vocabulary.end}
    return {key: value for key, value in found.items() if value is not None}


def _judge_start(name: str, done: Run, vocabulary: int) -> None:
    """The loss before the first step against that of a guess among all words: far off, something is built wrong."""
    uniform = math.log(vocabulary)
    for target in ("mlm", "lm"):
        if (started := done.curve[0].get(f"heldout_{target}")) is None:
            continue
        print(f"{name}: {target} loss before the first step {started:.3f}, ln V = {uniform:.3f}")
        if abs(started - uniform) > 1:
            print(f"{name}: that is far from a guess among {vocabulary:,} words; look at the initial weights (std) and "
                  f"at the labels", file=sys.stderr)  # fmt: skip


def _transformers_logits(folder: Path, targets: Mapping, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import transformers

    transformers.logging.set_verbosity_error()
    kind = transformers.AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    ).architectures[0]
    model = (
        getattr(transformers, kind)
        .from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
        .eval()
    )
    named = {THEIRS[field]: value.long() if value.dtype == torch.bool else value for field, value in batch.items()
             if field in THEIRS}  # fmt: skip
    accepted = signature(model.forward).parameters
    output = model(**{key: value for key, value in named.items() if key in accepted})
    found = {target: next((output[key] for key in LOGITS[target] if key in output), None) for target in targets
             if target in LOGITS}  # fmt: skip
    if not found or any(value is None for value in found.values()):
        raise ValueError(
            f"{kind} of transformers gives {', '.join(output)}, which has no logits of {', '.join(targets)}"
        )
    return found


def _parts(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def main(address: str, name: str, tokens: str, tokenizer: str, out: str, checkpoints: str) -> None:
    """python -m tasks.pretrain params.yaml:language NAME TOKENS TOKENIZER OUT CHECKPOINTS"""
    made = pretrain(read_settings(address), name, Path(tokens), Path(tokenizer), Path(out), Path(checkpoints))
    if made is None:
        sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    command(main)
