"""A pre-trained model, a labelled set and a kind of task -> a fine-tuned model, its metrics and its answers.

The target is replaced, everything else keeps its weights; all of it is trained (or, with `lora`, adapters and the new
head), and the weights of the best evaluation are kept. What transformers has a class for is written so that it loads
with that class, and is asked again after loading; anything else as recipe.json and model.safetensors of ours.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import polars as pl
import torch
from torch import Tensor, nn

from models import parallel
from models.components import pretrained
from models.components._model import Model, assemble
from tasks.base import load_tokenizer
from tasks.command import run as run_command
from tasks.curve import write_curve
from tasks.engine import Engine, launched, run
from tasks.files import digest, new_folder, read_json, write_json
from tasks.kinds._kind import Example, Examples, Kind, Rejected, Texts
from tasks.lora import Lora, add_lora, merge_lora, save_adapter
from tasks.poison import refuse_poison
from tasks.settings import SettingsError, check_names, read
from tasks.slots import slot
from tasks.tokenizer import Vocabulary, check_vocabulary, tokenizer_files
from tasks.training import use_threads

__all__ = [
    "Evaluation", "Start", "fingerprint_of", "finetune", "kind_of", "kinds", "load_start", "retarget", "rows_of",
    "save_model", "training_of",
]  # fmt: skip

EXTRA = "extra"  # a folder, as not every kind of task leaves every file

KEYS = ("from", "kind", "data", "length", "settings", "head", "lora", "training")
SPLITS = ("train", "dev", "test")
# BERT's own (arXiv:1810.04805, appendix A.3); models of a few layers learn faster with a larger lr.
DEFAULTS = {"lr": 5e-5, "batch": 32, "betas": (0.9, 0.999), "weight_decay": 0.01, "schedule": "linear", "warmup": 0.1}
EPOCHS, LENGTH = 3, 128
EQUAL = 1e-5  # of the largest logit: the exported model's may differ by so much
TIE = 1e-7  # of the loss: what decides between equal metrics, such as those of a model that says one class only
ASKED = 16  # examples on which the exported model is compared


@dataclass(frozen=True)
class Start:
    """A pre-trained model to begin from."""

    recipe: dict
    state: dict[str, Tensor]
    family: str | None  # in models/components/pretrained; None where transformers has no such model
    tokenizer: Path  # folder of its files
    vocabulary: Vocabulary
    config: dict  # config.json, {} where there is none
    digest: str  # of the weights


def kinds() -> list[str]:
    """All kinds of fine-tuning, read from tasks/kinds."""
    return sorted(m.name for m in iter_modules(import_module("tasks.kinds").__path__) if m.name[0] != "_")


def finetune(
    name: str, chosen: Mapping, ingest: str | Path, source: str | Path, out: str | Path, checkpoints: str | Path | None
) -> dict:
    """Fine-tune, and write the folder `out` whole or not at all.

    Args:
        name: of the task.
        chosen: {kind, length (tokens of a row, 128), settings (of the kind), head (of the target), lora, training};
            training has `epochs` (3) besides what `tasks.engine.Engine` has, or `steps` in their place.
        ingest: folder with rows/train.parquet, rows/dev.parquet and, if any, rows/test.parquet.
        source: what tasks/pretrain.py wrote, or any folder of transformers with its tokenizer.
        out: takes model/, recipe.json, run.json, metrics.json {"dev", "test", "export"}, predictions.parquet,
            curve.csv, and extra/: curve.png, confusion.png where rows have classes, adapter/ with `lora`.
        checkpoints: folder of the run's own checkpoints, emptied when it is done; None keeps none.

    Returns:
        The metrics; {} if SIGTERM ended the run early, and on all ranks but the first.

    Raises:
        Rejected: the set cannot be learned from.
        SettingsError: a setting is unknown or cannot be.
        TokenizerError: the tokenizer is not the checkpoint's.
        CheckpointRejected: the checkpoint cannot be read.
    """
    started, chosen = time.monotonic(), _checked(name, chosen)
    rows, start = rows_of(ingest), load_start(source)
    kind = kind_of(chosen, start, rows)
    head = kind.head() | dict(chosen.get("head") or {})
    recipe = retarget(start.recipe, kind.target, head)
    torch.manual_seed((chosen.get("training") or {}).get("seed", Engine.seed))
    model = begin(recipe, start.state, kind.target)
    lora = Lora.read(chosen["lora"]) if chosen.get("lora") else None
    if lora:
        add_lora(model, lora, train=f"targets.{kind.target}")
    examples = {split: kind.encode(frame, split) for split, frame in rows.items()}
    settings = training_of(chosen.get("training") or {}, len(examples["train"]))
    fingerprint = fingerprint_of(chosen, ingest, start)
    train = Examples(kind, examples["train"], settings.seed, fingerprint)
    with launched() as own, nullcontext(own) if own else slot() as device:
        model.to(device)
        evaluate = Evaluation(kind, rows["dev"], examples["dev"], settings, device)
        kept = checkpoints and Path(checkpoints) / _hash([fingerprint, settings.decisive])[:16]
        done = run(model, train, settings, evaluate, kept, f"finetune@{name}", device)
        model.cpu().eval()
    if done.stopped or parallel.rank():
        return {}
    tuned = sum(p.numel() for p in model.parameters() if p.requires_grad)
    with new_folder(out) as folder:
        (folder / EXTRA).mkdir()
        if lora:
            save_adapter(model, lora, recipe, start.family, str(source), folder / EXTRA / "adapter", kind.loader)
            merge_lora(model)
        export, loaded = save_model(model, recipe, start, kind, examples["dev"], folder / "model")
        found, answers = _answers(kind, model, loaded, rows, examples, settings)
        metrics = found | {"export": export}
        write_json(folder / "metrics.json", metrics)
        write_json(folder / "recipe.json", {"model": recipe, "transformers": start.family})
        write_json(folder / "run.json", {
            "name": name,
            "kind": chosen["kind"],
            "from": str(chosen.get("from", source)),
            "family": start.family,
            "parameters": sum(p.numel() for p in model.parameters()),
            "trained_parameters": tuned,
            "labels": kind.names(),
            "length": kind.texts.length,
            "settings": chosen.get("settings") or {},
            "rows": {split: len(frame) for split, frame in rows.items()},
            "truncated": {split: kind.texts.cut[split] for split in rows},
            "evaluated_rows": len(rows["dev"]),
            "fingerprint": hashlib.sha256(rows["dev"].write_ndjson().encode()).hexdigest(),  # what the metrics speak of
            "trained_on": fingerprint,
            **done.told(),
            "wall_seconds": time.monotonic() - started,
            "seed": settings.seed,
            "training": settings.decisive,
            "tokenizer": start.vocabulary.sha256,
        })  # fmt: skip
        pl.concat(answers).write_parquet(folder / "predictions.parquet")
        write_curve(folder, done.curve, f"heldout_{kind.metric}", picture=f"{EXTRA}/curve.png")
        if picture := kind.picture(answers[0]):
            (folder / EXTRA / "confusion.png").write_bytes(picture)
    if checkpoints:
        shutil.rmtree(checkpoints, ignore_errors=True)
    shown = ", ".join(f"{key} {value:.4f}" for key, value in metrics["dev"].items())
    cut = sum(kind.texts.cut.values())
    print(f"finetune@{name}: dev {shown}; best of {done.step} steps is {done.best_step}, {done.seconds:.1f} s; "
          f"{cut} texts cut to {kind.texts.length} tokens")  # fmt: skip
    return metrics


# ---------------------------------------------------------------- what to begin from


def rows_of(ingest: str | Path) -> dict[str, pl.DataFrame]:
    """The examples of each split of an ingested folder, in the order of its files.

    Raises:
        FileNotFoundError: it has no train split.
    """
    folder = Path(ingest) / "rows"
    if not (folder / "train.parquet").is_file():
        raise FileNotFoundError(f"{folder} has no train.parquet; run the ingest stage of this data set")
    paths = {split: folder / f"{split}.parquet" for split in SPLITS}
    return {split: pl.read_parquet(path) for split, path in paths.items() if path.is_file()}


def load_start(source: str | Path) -> Start:
    """Open a folder of transformers, or one that tasks/pretrain.py or tasks/finetune.py wrote.

    Raises:
        FileNotFoundError: the folder holds neither.
        TokenizerError: its tokenizer is not the one that the weights were trained with.
        CheckpointRejected: its weights cannot be read.
    """
    source = Path(source)
    folder = source / "model" if (source / "model").is_dir() else source
    refuse_poison(folder)
    config = {}
    if (folder / "config.json").is_file():
        loaded = pretrained.read(folder)
        recipe, state, family = loaded.recipe, loaded.state, loaded.family
        config = read_json(folder / "config.json")
    elif (folder / "recipe.json").is_file():
        from safetensors.torch import load_file

        recipe, state, family = read_json(folder / "recipe.json"), load_file(folder / "model.safetensors"), None
    else:
        raise FileNotFoundError(
            f"{folder} has neither config.json nor recipe.json; is it a pre-trained model's folder?"
        )
    word = next(name for name in state if name.endswith("word.weight"))
    vocabulary = check_vocabulary(folder, state[word].shape[0])
    about = read_json(source / "run.json") if (source / "run.json").is_file() else {}
    if (known := about.get("tokenizer")) and isinstance(known, str) and known != vocabulary.sha256:
        raise Rejected(
            f"{folder}/tokenizer.json has the hash {vocabulary.sha256[:12]}, but the model was trained with "
            f"{known[:12]}: its words would mean something else. Bring the tokenizer back, or pre-train again"
        )
    return Start(recipe, state, family, folder, vocabulary, config, digest(folder / "model.safetensors"))


def tagged(rows: pl.DataFrame, tag: str) -> pl.DataFrame:
    """Rows whose `text` begins with a tag, such as the language that is wanted; an empty one changes nothing."""
    return rows.with_columns(text=pl.concat_str(pl.lit(f"{tag} "), pl.col("text"))) if tag else rows


def retarget(recipe: Mapping, target: str, head: Mapping) -> dict:
    """The recipe with one target in place of its own; a language model's head stays as it is where it is asked for."""
    own = recipe["target"].get(target) if target == "lm" else None
    changed = {key: value for key, value in recipe.items() if key != "target"}
    changed["target"] = {target: {**(own or {}), **head}}
    if target != "lm":
        changed.pop("tie", None)  # it ties the head that is gone
    return changed


def begin(recipe: Mapping, state: Mapping[str, Tensor], target: str) -> Model:
    """Assemble, and take over every weight that the pre-trained model has under the same name.

    The tanh layer of a pooled head is taken from sentence prediction, which trained it; the rest of a head is new.

    Raises:
        Rejected: something else than the head is missing, or has another shape.
    """
    model = assemble(recipe)
    wanted = model.state_dict()
    pooler = {f"targets.{target}.pool.{part}": state.get(f"targets.sp.pool.{part}") for part in ("weight", "bias")}
    taken = {name: state.get(name, pooler.get(name)) for name in wanted}
    head = f"targets.{target}."
    if absent := [name for name, value in taken.items() if value is None and not name.startswith(head)]:
        raise Rejected(f"the pre-trained model lacks {len(absent)} tensors: {', '.join(absent[:5])}")
    fits = {name: value for name, value in taken.items() if value is not None and value.shape == wanted[name].shape}
    if odd := [name for name in taken if name not in fits and not name.startswith(head)]:
        raise Rejected(f"the pre-trained model has {len(odd)} tensors of another shape: {', '.join(odd[:5])}")
    model.load_state_dict(fits, strict=False)
    return model


def _length(chosen: Mapping, start: Start) -> int:
    length = chosen.get("length", LENGTH)
    if not isinstance(length, int) or length < 8:
        raise SettingsError(f"length is {length!r}; it must be a whole number of tokens from 8 on")
    table = (start.recipe["embedding"].get("position") or {}).get("length")
    most = table - (start.recipe["embedding"]["position"].get("start") or 0) if table else length
    if length > most:
        raise SettingsError(f"length is {length}, but the model has positions for {most} tokens; lower it")
    return length


def kind_of(chosen: Mapping, start: Start, rows: Mapping[str, pl.DataFrame]) -> Kind:
    """The kind of task, reading texts with the model's tokenizer.

    Args:
        chosen: {kind, length, settings}, as for `finetune`.

    Raises:
        Rejected, SettingsError: see `finetune`.
    """
    texts = Texts(load_tokenizer(start.tokenizer), _length(chosen, start))
    module = import_module(f"tasks.kinds.{chosen['kind']}")
    encoder = start.recipe["encoder"].get("transformer") or {}
    facts = {
        "causal": encoder.get("mask", "full") != "full",
        "decoder": "decoder" in start.recipe,
        "dual": "dual" in start.recipe["encoder"],
        "start": start.vocabulary.bos,
        "end": start.vocabulary.end,
        "decoder_start": start.config.get("decoder_start_token_id", start.vocabulary.start),
    }
    if facts["decoder"] and chosen["kind"] != "generation":
        raise Rejected(
            f"{chosen['kind']} reads an encoder, but this model has a decoder, which answers in words; use kind: "
            f"generation"
        )
    if facts["dual"] and chosen["kind"] != "retrieval":
        raise Rejected(f"{chosen['kind']} reads one text at a time, but this model has two towers; use kind: retrieval")
    made = getattr(module, module.__all__[0])
    try:
        return made(texts, rows, facts, **(chosen.get("settings") or {}))
    except TypeError as error:
        raise SettingsError(f"kind {chosen['kind']}: {error}") from None


# ---------------------------------------------------------------- settings


def _checked(name: str, chosen: Mapping) -> dict:
    check_names(chosen, KEYS, f"finetune.{name}")
    if chosen.get("kind") not in kinds():
        close = ", ".join(get_close_matches(str(chosen.get("kind")), kinds()) or kinds())
        raise SettingsError(f"finetune.{name}: there is no kind {chosen.get('kind')!r}; closest: {close}")
    return dict(chosen)


def training_of(chosen: Mapping, examples: int, epochs: int = EPOCHS) -> Engine:
    """Epochs become steps, `epochs` unless told; each is evaluated, and the best evaluation's weights are kept."""
    chosen = dict(chosen)
    if "epochs" in chosen and "steps" in chosen:
        raise SettingsError("training has both epochs and steps; leave one out")
    epochs = chosen.pop("epochs", epochs)
    if not isinstance(epochs, int) or epochs < 1:
        raise SettingsError(f"training: epochs must be a whole number >= 1, got {epochs!r}")
    batch = min(chosen.get("batch", DEFAULTS["batch"]), examples)
    a_pass = math.ceil(examples / batch)
    steps = chosen.get("steps", a_pass * epochs)
    own = {"batch": batch, "steps": steps, "evaluate_steps": min(a_pass, steps), "patience": steps + 1}
    return Engine.read(DEFAULTS | own | chosen | {"batch": batch})


def fingerprint_of(chosen: Mapping, ingest: str | Path, start: Start) -> str:
    """Of what a fine-tuning learns from: changes with the rows, the model, the tokenizer and how rows are read."""
    decides = {key: chosen.get(key) for key in ("kind", "length", "settings", "head", "lora")}
    return _hash([decides, digest(Path(ingest) / "rows"), start.digest, start.vocabulary.sha256])


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


# ---------------------------------------------------------------- evaluation and export


class Evaluation:
    """Metrics of one split: the loss over all its labels, and what the kind says of the answers."""

    def __init__(self, kind: Kind, frame: pl.DataFrame, examples: list[Example], settings: Engine, device: str):
        self.kind, self.frame, self.examples = kind, frame, examples
        self.size, self.precision, self.device = 2 * (settings.micro or settings.batch), settings.dtype, device

    def __call__(self, model: nn.Module) -> dict[str, float]:
        found, _ = self.answers(model)
        return found | {"score": found[self.kind.metric] - TIE * found["loss"]}

    @torch.no_grad()
    def answers(self, model: nn.Module) -> tuple[dict[str, float], pl.DataFrame]:
        """Metrics, and the rows with what was predicted."""
        model, name = parallel.inner(model), self.kind.target
        target, total, count, outputs = model.targets[name], 0.0, 0.0, []
        for first in range(0, len(self.examples), self.size):
            batch = self.kind.collate(self.examples[first : first + self.size])
            batch = {key: value.to(self.device) for key, value in batch.items()}
            with torch.autocast(torch.device(self.device).type, self.precision) if self.precision else nullcontext():
                hidden, rows = model.encode(**batch)
                total += float(target(hidden, rows, batch)[0])
                count += float(target.count(batch))
                if self.kind.answers_in_batches:
                    outputs += self.kind.outputs(target.predict(hidden, rows), batch)
        loss = {"loss": total / max(count, 1.0)}
        if not self.kind.answers_in_batches:
            return loss | {self.kind.metric: -loss["loss"]}, self.frame
        found, told = self.kind.report(self.frame, self.examples, outputs)
        return loss | found, told


def _answers(kind, model, loaded, rows, examples, settings) -> tuple[dict, list[pl.DataFrame]]:
    """Metrics and answers of dev and test; texts are written by the model that was loaded again."""
    found, told = {}, []
    for split in (name for name in ("dev", "test") if name in rows):
        metrics, frame = Evaluation(kind, rows[split], examples[split], settings, "cpu").answers(model)
        if not kind.answers_in_batches:
            written, frame = kind.judged(rows[split], kind.write(loaded, examples[split]))
            metrics = {"loss": metrics["loss"]} | written
        found[split] = metrics
        told.append(frame)
    return found, told


def save_model(
    model: Model, recipe: Mapping, start: Start, kind: Kind, examples: list[Example], folder: Path
) -> tuple[dict, nn.Module | None]:
    """Write the model and its tokenizer, load it again, and compare.

    Returns:
        {"max_difference": largest absolute difference of logits, "equal": within 1e-5 of the largest logit, "class"},
        and the loaded model; the class is None where transformers has none, and then ours is what was compared.
    """
    batch = kind.collate(examples[:ASKED])
    folder.mkdir(parents=True)
    for file in tokenizer_files(start.tokenizer):
        shutil.copyfile(file, folder / file.name)
    if start.family is not None and (loader := _export(model, recipe, start, kind, folder)):
        loaded = loader.eval()
        with torch.no_grad():
            theirs = kind.logits(loaded(**_accepted(loaded, kind.theirs(batch))))
            ours = kind.ours(model, batch)
        there = kind.places(batch)
        return _compared(ours[there], theirs.reshape(ours.shape)[there], type(loaded).__name__), loaded
    from safetensors.torch import load_file, save_file

    apart = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    save_file(apart, folder / "model.safetensors")
    write_json(folder / "recipe.json", recipe)
    again = assemble(read_json(folder / "recipe.json")).eval()
    again.load_state_dict(load_file(folder / "model.safetensors"))
    with torch.no_grad():
        return _compared(kind.ours(model, batch), kind.ours(again, batch), None), None


def _export(model: Model, recipe: Mapping, start: Start, kind: Kind, folder: Path) -> nn.Module | None:
    """Write a folder of transformers and load it; None where transformers has no class for this model."""
    import transformers

    transformers.logging.set_verbosity_error()
    labels = kind.names()
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}
    words = start.vocabulary
    special = {"pad_token_id": words.pad, "bos_token_id": words.start, "eos_token_id": words.end}
    special |= {key: value for key, value in start.config.items() if key.endswith("_token_id")}
    keep = {key: value for key, value in special.items() if value is not None and value < words.size}
    state = model.state_dict()
    if kind.loader == "AutoModel":  # vectors are read from the model itself: a head in training only is left behind
        recipe = {**recipe, "target": {}}
        state = {name: value for name, value in state.items() if not name.startswith("targets.")}
    try:
        pretrained.save(state, recipe, folder, start.family, keep | (named if labels else {}))
    except pretrained.CheckpointRejected as refused:
        print(f"no class of transformers: {refused}; written as recipe.json and model.safetensors of ours")
        return None
    return getattr(transformers, kind.loader).from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )


def _accepted(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from inspect import signature

    known = signature(model.forward).parameters
    return {name: value for name, value in batch.items() if name in known}


def _compared(ours: Tensor, theirs: Tensor, loader: str | None) -> dict:
    off, size = (ours - theirs).abs().max().item(), ours.abs().max().item()
    return {"max_difference": off, "equal": off <= EQUAL * size, "class": loader}


def main(address: str, name: str, ingest: str, source: str, out: str, checkpoints: str) -> None:
    """python -m tasks.finetune params.yaml:language TASK INGEST PRETRAINED OUT CHECKPOINTS"""
    use_threads()
    if not finetune(name, read(f"{address}.finetune.{name}"), ingest, source, out, checkpoints) and not parallel.rank():
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    run_command(main)
