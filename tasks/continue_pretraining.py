"""Go on pre-training a causal language model on a mixture of sources that moves: ChatFlow's one run, resumable.

    python -m tasks.continue_pretraining params.yaml:language.continued zh BASE artifacts/ingest OUT CHECKPOINTS

One optimizer and one schedule over the whole run. The base may be any causal language model of transformers; its
tokenizer goes on beside it. Under torchrun the same command trains on several ranks. Stopped by SIGTERM it exits 75,
which the flows try again, and then continues; so it does after any crash. Mixture: tasks/mixture.py; what decides the
next source: models/language/chatflow.py; document masks and losses by source: models/language/_causal.py.
"""

import csv
import hashlib
import os
import resource
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

import models
from models import parallel
from models.flops import flops_per_token
from models.language._causal import Causal
from tasks import plots
from tasks.base import load_causal, load_tokenizer, model_of
from tasks.command import run as command
from tasks.curve import write_curve
from tasks.engine import Engine, HeldOut, Run, launched, run
from tasks.extend_vocabulary import located
from tasks.files import digest, new_folder, write_json
from tasks.mixture import Mixture, open_mixture
from tasks.pretrain import rows_digest
from tasks.settings import SettingsError, check_names
from tasks.settings import read as read_settings
from tasks.slots import slot
from tasks.training import use_threads

__all__ = ["continue_pretraining", "save_causal"]

KEYS = ("from", "sources", "sampler", "length", "training", "evaluation")
CLOSE = 1e-5  # of the largest logit: what is left to the order of float32 sums
ENOUGH = 0.5  # of the sampler's path: less is worth a word
STANDING = {"betas": (0.9, 0.95), "weight_decay": 0.1, "clip": 1.0, "schedule": "cosine", "warmup": 0.01, "lr": 3e-4}


def continue_pretraining(
    settings: Mapping,
    name: str,
    base: str | Path,
    ingest: str | Path,
    out: str | Path,
    checkpoints: str | Path,
    tokens: str | Path | None = None,
) -> Path | None:
    """Train `settings[name]` and write its folder.

    Args:
        settings: name -> {sources: {name: {data, kind, language, template, role, repeats}}, sampler, length, training};
            `from` and `evaluation` are for the pipeline. For sources and sampler see tasks/mixture.py, for training
            tasks/engine.py.
        base: folder of a causal language model, or of the stage that made or noted it, see tasks/base.py.
        ingest: folder of ingested data sets, by the names that the sources' `data` give; what is not in it is a path.
        checkpoints: of this run, and its tokens; emptied when it is done.
        tokens: keeps the tokens for other runs on the same texts.

    Returns:
        `out`: model/, run.json, metrics.json, curve.csv, curve.png, mix.csv, mix.png. None if SIGTERM ended the run
        early.

    Raises:
        SettingsError, ValueError, LookupError: what cannot work; nothing is written.
        Diverged, DataChanged: see tasks/engine.py; the checkpoints stay.
    """
    use_threads()
    out, checkpoints = Path(out), Path(checkpoints)
    chosen = _chosen(settings, name)
    training = Engine.read(STANDING | dict(chosen.get("training") or {}))
    base, length = model_of(base), chosen["length"]
    sources = _located(chosen["sources"], Path(ingest))
    sampler = dict(chosen.get("sampler") or {})
    source, heldout = (open_mixture(sources, sampler, base, length, training.seed, heldout=held,
                                    cache=tokens or checkpoints / "tokens") for held in (False, True))  # fmt: skip
    if all(part.entry.repeats for part in source.samples):
        source.mix(training.steps * training.batch)  # refuses what would end in the midst of the run
    torch.manual_seed(training.seed)
    model = load_causal(base)
    _refuse_misfit(model, base, length, source)
    content = digest(base)
    known = f"{content} {sorted(training.decisive.items())} {digest(Path(models.__file__).parent)} {source.fingerprint}"
    kept = checkpoints / hashlib.sha256(known.encode()).hexdigest()[:16]
    with launched() as device, slot() if device is None else nullcontext(device) as device:
        _tell(name, source, training)
        causal = Causal(model.to(device), source.sources)
        parameters = sum(parameter.numel() for parameter in causal.parameters())
        held = HeldOut(heldout, training, device)
        done = run(causal, source, training, held, kept, name, device, flops_of_causal(causal, length))
        if done.stopped:
            return None
        found, weights = held(causal), parallel.full_state(causal)
        if parallel.rank() != 0:
            return out
    about = {
        "name": name,
        "base": str(chosen.get("from") or base),
        "base_content": content,
        "family": model.config.model_type,
        "parameters": parameters,
        "sources": source.report,
        "sampler": sampler,
        "length": length,
        "trained_on": source.fingerprint,
        "fingerprint": rows_digest(heldout, held.rows),
        "evaluated_rows": held.rows,
        "training": training.decisive,
        "seed": training.seed,
        **done.told(),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "peak_device_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else None,
        "precision": training.precision,
        "packed": causal.packed,
        "chunked": causal.chunked,
    }
    with new_folder(out) as folder:
        report = save_causal(weights, base, folder / "model", heldout.rows(range(min(4, len(heldout)))))
        write_json(folder / "run.json", about)
        write_json(folder / "metrics.json", {"heldout": found, "export": report})
        write_curve(folder, done.curve, *_by_source(source.sources))
        _write_mix(folder, source, done, training)
    shutil.rmtree(checkpoints, ignore_errors=True)
    print(f"{name}: {parameters:,} parameters, {done.tokens:,} tokens in {done.seconds:.0f} s; held-out "
          + ", ".join(f"{each} {found[f'loss_{each}']:.4f}" for each in source.sources)
          + f"; export off by {report['max_difference']:.1e}")  # fmt: skip
    return out


@torch.no_grad()
def save_causal(weights: Mapping[str, Tensor], base: Path, folder: Path, probe: Mapping[str, Tensor]) -> dict:
    """Write a folder of transformers: the base's form and tokenizer with other weights; load it again, and compare.

    Args:
        weights: of `models.parallel.full_state` of a Causal around the base.
        base: the folder it was loaded from.
        folder: to make.
        probe: a batch on which both must agree.

    Returns:
        {"max_difference": of the logits, "equal": whether that is rounding}.

    Raises:
        ValueError: what was written does not give the same logits.
    """
    model = load_causal(base)
    parallel.load_state(whole := Causal(model), weights)
    model.eval().save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    again = Causal(load_causal(folder)).eval()
    batch = {name: value for name, value in probe.items() if name in ("ids", "mask", "documents", "positions")}
    real, ours = probe["mask"], whole.eval().read(**batch)
    theirs = again.read(**batch)
    off, size = (ours[real] - theirs[real]).abs().max().item(), ours[real].abs().max().item()
    if off > CLOSE * max(size, 1.0):
        raise ValueError(f"the exported logits are off by {off:.3g}; nothing was written. Is {base} of a class that "
                         f"saves all of its weights?")  # fmt: skip
    return {"max_difference": off, "equal": True}


def flops_of_causal(causal: Causal, length: int) -> float | None:
    """Operations to train on one token, see models/flops.py; None where the configuration does not say the sizes."""
    config, whole = causal.whole.config, causal.whole
    sizes = [getattr(config, key, None) for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")]
    if None in sizes:
        return None
    layers, heads, width = sizes
    each = getattr(config, "head_dim", None) or width / heads
    tied = whole.get_output_embeddings().weight is whole.get_input_embeddings().weight
    looked_up = 0 if tied else whole.get_input_embeddings().weight.numel()
    return flops_per_token(sum(p.numel() for p in whole.parameters()), looked_up, layers, heads, each, each, length)


def _chosen(settings: Mapping, name: str) -> dict:
    if name not in (settings or {}):
        raise SettingsError(f"language.continued has no {name!r}; it has: {', '.join(settings or {}) or 'nothing'}")
    chosen = dict(settings[name] or {})
    check_names(chosen, KEYS, f"continued.{name}")
    if missing := [key for key in ("sources", "length") if not chosen.get(key)]:
        raise SettingsError(f"continued.{name} lacks {', '.join(missing)}")
    return chosen


def _located(sources: Mapping[str, Mapping], ingest: Path) -> dict[str, dict]:
    """The sources with folders for the names of their data."""
    return {name: dict(entry or {}) | {"data": located((entry or {}).get("data"), ingest) or None}
            for name, entry in sources.items()}  # fmt: skip


def _refuse_misfit(model: nn.Module, base: Path, length: int, source: Mixture) -> None:
    """A row that is longer than the model's positions, or ids that it has no row for."""
    most = getattr(model.config, "max_position_embeddings", None)
    if most and length > most:
        raise SettingsError(f"length is {length}, but {base} has positions for {most} tokens; lower it")
    rows, wanted = len(model.get_input_embeddings().weight), source.samples[0].shards.manifest["vocabulary"]
    if wanted > rows:
        raise SettingsError(f"{base}: the tokenizer has {wanted:,} ids, the model {rows:,} rows of embeddings; they do "
                            f"not belong together")  # fmt: skip


def _tell(name: str, source: Mixture, training: Engine) -> None:
    if parallel.rank() != 0:
        return
    if (done := source.ahead(training.steps * training.batch)) < ENOUGH:
        print(f"{name}: the mixture will be about {done:.0%} on its way when the run ends; is sampler.grow meant for a "
              f"longer one?", file=sys.stderr)  # fmt: skip
    for each, report in source.report.items():
        long = f", {report['too_long']:,} longer than a row left out" if report["too_long"] else ""
        empty = f", {report['without_text']:,} without text left out" if report["without_text"] else ""
        unknown = f", {report['unknown_share']:.2%} of them unknown" if report["unknown_share"] else ""
        print(
            f"{name}: source {each}: {report['samples']:,} samples of {report['tokens']:,} tokens{unknown}{long}{empty}"
        )


def _by_source(sources: Sequence[str]) -> list[str]:
    return [f"heldout_loss_{name}" for name in sources]


def _write_mix(folder: Path, source: Mixture, done: Run, training: Engine) -> None:
    """mix.csv and mix.png: the sampler's books at every row of the curve."""
    rows = [{"step": row["step"]} | source.mix(row["step"] * training.batch) for row in done.curve]
    with open(folder / "mix.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    drawn = [{"step": row["step"]} | {f"share of {name}": row[f"share_{name}"] for name in source.sources}
             for row in rows]  # fmt: skip
    (folder / "mix.png").write_bytes(plots.curves(drawn))


def main(address: str, name: str, base: str, ingest: str, out: str, checkpoints: str) -> None:
    """python -m tasks.continue_pretraining params.yaml:language.continued NAME BASE INGEST OUT CHECKPOINTS"""
    if continue_pretraining(read_settings(address), name, base, ingest, out, checkpoints) is None:
        sys.exit(os.EX_TEMPFAIL)


if __name__ == "__main__":
    command(main)
