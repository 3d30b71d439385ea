"""A language model and authored records -> a model that authors, tuned by LoRA or whole, with its chat template.

    python -m tasks.authoring.instruct params.yaml:language.instructed NAME BASE AUTHORED OUT CHECKPOINTS

Only answers and their ends are learned. Tasks are drawn by their rows to the power of tau; a row takes several
exchanges, each kept apart. An exchange that is too long for a row loses the end of its input, never of its answer; one
whose answer would then say more than its input shows is left out. The weights of the best evaluation on dev are kept.
Method: models/language/llama_e.py; rows: tasks/mixture.py; run: tasks/engine.py.
"""

import hashlib
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import torch
from torch import nn

import models
from models import build, parallel
from models.components._closest import refuse_unknown
from models.language._causal import Causal
from models.language.llama_e import PRESETS, LlamaE
from tasks.authoring._adapter import adapted, check_noop, merged, targets
from tasks.authoring.grounding import Lexicon, invented
from tasks.base import load_causal, load_tokenizer, model_of
from tasks.command import run as command
from tasks.curve import write_curve
from tasks.engine import Engine, HeldOut, launched, run
from tasks.files import digest, new_folder, read_json, write_json, write_text
from tasks.mixture import Mixture, open_mixture
from tasks.settings import SettingsError
from tasks.settings import read as read_settings
from tasks.slots import slot
from tasks.training import use_threads

__all__ = ["frames", "instruct", "method_of"]

KEYS = ("from", "data", "preset", "peft", "length", "tau", "preamble", "training", "tasks")
CLOSE = 1e-5  # of the largest logit: what merging may change
LEAST = 8  # characters of an input that is cut short: less says nothing
HELD = 10  # percent of a task's training rows that are kept for evaluation where dev has none of it


def instruct(
    settings: Mapping, name: str, base: str | Path, data: str | Path, out: str | Path, checkpoints: str | Path
) -> dict | None:
    """Tune `settings[name]`, and write its folder whole or not at all.

    Args:
        settings: name -> {preset: llama_e or ecellm, peft: {lora: {rank, alpha, dropout, layers, head, frozen:
            float32 or bfloat16, of the weights that are not trained}} or {full: {}}, length: tokens of a row, tau: of
            the mixture of tasks, preamble, tasks: those to tune on (all), training: {epochs, and what tasks/engine.py
            has}, from and data: names, for the graph}.
        base: folder of a causal language model, or of the stage that made or noted it, see tasks/base.py.
        data: what tasks/authoring/records.py wrote.
        out: takes model/ (whole, with the tokenizer and its chat template), adapter/ (peft's layout; empty without
            lora), run.json, metrics.json, curve.csv and curve.png.
        checkpoints: folder of the run's own checkpoints and tokens, emptied when it is done.

    Returns:
        What run.json says; None if SIGTERM ended the run early, and on all ranks but the first.

    Raises:
        SettingsError, ValueError, LookupError: what cannot work; nothing is written.
    """
    use_threads()
    checkpoints, data, (chosen, method) = Path(checkpoints), Path(data), _chosen(settings, name)
    base, tuning = model_of(base), next(iter(chosen["peft"]))
    model = load_causal(base)
    most = getattr(model.config, "max_position_embeddings", None) or method.length
    length = min(method.length, most)
    with TemporaryDirectory() as place:
        words = _with_template(base, Path(place), method)
        parts, counts = frames(data, load_tokenizer(words), method, length, chosen["tasks"])
        seed = (chosen.get("training") or {}).get("seed", Engine.seed)
        source, held = (_mixture(parts, split, method, words, length, seed) for split in ("train", "dev"))
        training = _training(method, chosen.get("training") or {}, len(source))
        torch.manual_seed(training.seed)
        probe = source.rows([0])["ids"]
        model.eval()
        layers = targets(model, method) if tuning == "lora" else []
        if tuning == "lora":
            model = model.to(getattr(torch, _frozen(chosen)))
            with torch.no_grad():
                before = model(input_ids=probe, use_cache=False).logits
            model = adapted(model, method, str(chosen.get("from") or base))
            check_noop(before, model, probe)
        known = f"{digest(base)} {sorted(training.decisive.items())} {chosen['peft']} {source.fingerprint}"
        known += digest(Path(models.__file__).parent)
        kept = checkpoints / hashlib.sha256(known.encode()).hexdigest()[:16]
        with launched() as device, slot() if device is None else nullcontext(device) as device:
            causal = Causal(model.to(device), source.sources)
            trained = sum(p.numel() for p in causal.parameters() if p.requires_grad)
            look = HeldOut(held, training, device)
            done = run(causal, source, training, look, kept, f"instructed@{name}", device)
            if done.stopped:
                return None
            found, weights = look(causal), parallel.full_state(causal)
            if parallel.rank():
                return None
        about = {
            "name": name, "base": str(chosen.get("from") or base), "base_content": digest(base),
            "data": str(chosen.get("data") or data), "data_digest": read_json(data / "manifest.json")["digest"],
            "provenance": read_json(data / "manifest.json")["provenance"], "method": "llama_e",
            "preset": chosen["preset"], "peft": chosen["peft"], "layers": layers, "trained_parameters": trained,
            "parameters": sum(p.numel() for p in causal.parameters()), "length": length, "tau": method.tau,
            "rows": counts, "shares": method.shares(_sizes(parts["train"])), "sources": source.report,
            "trained_on": source.fingerprint, "training": training.decisive, "seed": training.seed,
            **done.told(),
        }  # fmt: skip
        with new_folder(out) as folder:
            report = _save(weights, base, words, folder, method, tuning, about["base"], probe)
            (folder / "adapter").mkdir(exist_ok=True)  # empty where all weights were tuned: the graph knows one form
            write_json(folder / "run.json", about)
            write_json(folder / "metrics.json", {"dev": found, "export": report})
            write_curve(folder, done.curve, *(f"heldout_loss_{task}" for task in source.sources))
    shutil.rmtree(checkpoints, ignore_errors=True)
    nats = ", ".join(f"{task} {found[f'loss_{task}']:.3f}" for task in source.sources)
    print(f"{name}: {trained:,} of {about['parameters']:,} numbers tuned on {done.tokens:,} tokens in "
          f"{done.seconds:.0f} s; dev {nats} nats a token; {counts['shortened']} inputs shortened, "
          f"{counts['dropped']} records left out")  # fmt: skip
    return about


def method_of(chosen: Mapping) -> LlamaE:
    """The method with a preset's values and those that `chosen` changes.

    Raises:
        SettingsError: no such preset, a setting that cannot be.
    """
    preset, peft = chosen.get("preset", "llama_e"), chosen.get("peft") or {"lora": {}}
    if preset not in PRESETS:
        raise SettingsError(f"preset is one of {', '.join(PRESETS)}, got {preset!r}")
    if not isinstance(peft, Mapping) or len(peft) != 1 or next(iter(peft)) not in ("lora", "full"):
        raise SettingsError(f"peft is {{lora: {{...}}}} or {{full: {{}}}}, got {peft!r}")
    own = dict(peft.get("lora") or {})
    for key in own:
        refuse_unknown("peft.lora", key, ("rank", "alpha", "dropout", "layers", "head", "frozen"), SettingsError)
    _frozen({"peft": peft})
    if peft.get("full"):
        raise SettingsError(f"peft: full has no settings, got {', '.join(peft['full'])}")
    own.pop("frozen", None)
    whole = {key: chosen[key] for key in ("length", "tau", "preamble") if chosen.get(key) is not None}
    try:
        return build("language", "llama_e", **PRESETS[preset] | own | whole)
    except (TypeError, ValueError) as error:
        raise SettingsError(str(error)) from None


def _frozen(chosen: Mapping) -> str:
    """The type of the weights that adapters leave as they are; in 16 bits they take half the memory."""
    kind = ((chosen.get("peft") or {}).get("lora") or {}).get("frozen", "float32")
    if kind not in ("float32", "bfloat16"):
        raise SettingsError(f"peft.lora: frozen is float32 or bfloat16, got {kind!r}")
    return kind


def frames(
    data: Path, tokenizer, method: LlamaE, length: int, tasks: Sequence[str] | None
) -> tuple[dict[str, dict[str, pl.DataFrame]], dict]:
    """Exchanges by split and task, each as what a user says and its answer, none longer than a row.

    Returns:
        {"train", "dev"} -> task -> columns instruction, input (empty), output; and counts: rows, shortened, dropped.

    Raises:
        SettingsError: nothing is left to train on.
    """
    lexicon = Lexicon.of(read_json(data / "manifest.json")["lexicon"])
    counts = {"read": 0, "shortened": 0, "dropped": 0}
    found: dict[str, dict[str, list]] = {"train": {}, "dev": {}}
    for split, by_task in found.items():
        for row in pl.read_parquet(data / "rows" / f"{split}.parquet").iter_rows(named=True):
            if tasks is not None and row["task"] not in tasks:
                continue
            counts["read"] += 1
            fitting = _fitting(row, tokenizer, method, length, lexicon)
            counts["shortened"] += fitting is not None and fitting != row["input"]
            counts["dropped"] += fitting is None
            if fitting is not None:
                asked = {"instruction": method.asked(row["instruction"], fitting), "input": "", "output": row["output"]}
                by_task.setdefault(row["task"], []).append(asked)
    if not found["train"]:
        raise SettingsError(f"{data} has no record that fits {length} tokens with its answer; lengthen the row")
    for task, rows in found["train"].items():
        if task not in found["dev"]:
            cut = max(1, len(rows) * HELD // 100)
            found["train"][task], found["dev"][task] = (rows[cut:], rows[:cut]) if len(rows) > 1 else (rows, rows)
    return {
        split: {task: pl.DataFrame(by_task[task]) for task in found["train"]} for split, by_task in found.items()
    }, counts


def _fitting(row: Mapping, tokenizer, method: LlamaE, length: int, lexicon: Lexicon) -> str | None:
    """The input, cut short where it must be; None where the exchange cannot be kept."""
    size = lambda given: (
        len(tokenizer(method.prompt(row["instruction"], given), add_special_tokens=False, verbose=False)["input_ids"])
        + len(tokenizer(row["output"], add_special_tokens=False, verbose=False)["input_ids"]) + 2
    )  # fmt: skip
    given = row["input"]
    if size(given) <= length:
        return given
    low, high = 0, len(given)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(given[:middle]) <= length else (low, middle - 1)
    short = given[:low].rstrip()
    if len(short) < LEAST or (
        row["task"] != "qa" and invented(row["output"], f"{row['instruction']}\n{short}", lexicon)
    ):
        return None
    return short


def _chosen(settings: Mapping, name: str) -> tuple[dict, LlamaE]:
    if name not in (settings or {}):
        raise SettingsError(f"language.instructed has no {name!r}; it has: {', '.join(settings or {}) or 'nothing'}")
    chosen = dict(settings[name] or {})
    for key in chosen:
        refuse_unknown(f"instructed.{name}", key, KEYS, SettingsError)
    chosen = {"preset": "llama_e", "tasks": None} | chosen | {"peft": dict(chosen.get("peft") or {"lora": {}})}
    return chosen, method_of(chosen)


def _with_template(base: Path, place: Path, method: LlamaE) -> Path:
    """The base's tokenizer with the method's chat template beside it; its other files stay byte for byte."""
    tokenizer = load_tokenizer(base)
    if not (tokenizer.eos_token or tokenizer.sep_token):
        raise SettingsError(f"the tokenizer of {base} has no token that ends a text (eos or sep); give it one")
    for file in sorted(base.iterdir()):
        if file.is_file() and not file.name.endswith((".safetensors", ".index.json")) and file.name not in (
            "config.json", "generation_config.json", "recipe.json", "chat_template.jinja"):  # fmt: skip
            shutil.copyfile(file, place / file.name)
    known = read_json(place / "tokenizer_config.json")
    if known.pop("chat_template", None) is not None:
        write_json(place / "tokenizer_config.json", known)
    start, end = tokenizer.bos_token or "", tokenizer.eos_token or ""
    write_text(place / "chat_template.jinja", method.chat_template(start, end))
    return place


def _mixture(
    parts: Mapping[str, Mapping[str, pl.DataFrame]], split: str, method: LlamaE, words: Path, length: int, seed: int,
) -> Mixture:  # fmt: skip
    sources = {task: {"data": frame, "kind": "sft", "template": "chat"} for task, frame in parts[split].items()}
    shares = method.shares(_sizes(parts["train"]))
    return open_mixture(sources, {"anchors": {0.0: shares, 1.0: shares}}, words, length, seed, heldout=split == "dev")


def _sizes(parts: Mapping[str, pl.DataFrame]) -> dict[str, int]:
    return {task: len(frame) for task, frame in parts.items()}


def _training(method: LlamaE, chosen: Mapping, rows: int) -> Engine:
    """Epochs become steps; every epoch is evaluated, and the best one's weights are kept."""
    chosen = dict(chosen)
    if "epochs" in chosen and "steps" in chosen:
        raise SettingsError("training has both epochs and steps; leave one out")
    epochs = chosen.pop("epochs", method.epochs)
    if not isinstance(epochs, int) or epochs < 1:
        raise SettingsError(f"training: epochs must be a whole number >= 1, got {epochs!r}")
    batch = min(chosen.get("batch", method.batch), rows)
    a_pass = math.ceil(rows / batch)
    steps = chosen.get("steps", a_pass * epochs)
    own = {"lr": method.lr, "schedule": method.schedule, "warmup": method.warmup, "betas": (0.9, 0.999),
           "weight_decay": 0.0, "steps": steps, "evaluate_steps": min(a_pass, steps),
           "patience": steps + 1}  # fmt: skip
    return Engine.read(own | chosen | {"batch": batch})


@torch.no_grad()
def _save(
    weights: Mapping, base: Path, words: Path, folder: Path, method: LlamaE, tuning: str, called: str,
    probe: torch.Tensor,
) -> dict:  # fmt: skip
    """Write adapter/ and model/, load the latter again, and compare.

    Raises:
        ValueError: the merged model does not compute what the tuned one does.
    """
    model = load_causal(base)
    if tuning == "lora":
        model = adapted(model, method, called)
        # The base's own weights stay as its folder has them, also where they were rounded for the run.
        weights = parallel.full_state(Causal(model)) | {name: w for name, w in weights.items() if "lora_" in name}
    parallel.load_state(Causal(model), weights)
    ours = model.eval()(input_ids=probe, use_cache=False).logits
    plain: nn.Module = merged(model, folder / "adapter") if tuning == "lora" else model
    tokenizer = load_tokenizer(words)
    plain.generation_config.eos_token_id = tokenizer.eos_token_id or tokenizer.sep_token_id
    plain.generation_config.pad_token_id = (
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else plain.generation_config.eos_token_id
    )
    plain.save_pretrained(folder / "model")
    for file in sorted(words.iterdir()):
        shutil.copyfile(file, folder / "model" / file.name)
    theirs = load_causal(folder / "model").eval()(input_ids=probe, use_cache=False).logits
    off, size = (ours - theirs).abs().max().item(), ours.abs().max().item()
    if off > CLOSE * max(size, 1.0):
        raise ValueError(f"the merged model's logits are off by {off:.3g}; nothing was written")
    return {"max_difference": off, "equal": True}


def main(address: str, name: str, base: str, data: str, out: str, checkpoints: str) -> None:
    """python -m tasks.authoring.instruct params.yaml:language.instructed NAME BASE AUTHORED OUT CHECKPOINTS"""
    if instruct(read_settings(address), name, base, data, out, checkpoints) is None and not parallel.rank():
        sys.exit(os.EX_TEMPFAIL)  # stopped early: the flows try again, and it continues


if __name__ == "__main__":
    command(main)
