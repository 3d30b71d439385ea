"""One training run of a recommender or a head: epochs, early stop, best weights, curve, exact resume.

`models/fit.py` knows the step, this file knows the run. Everything that decides the next step lives in the checkpoint:
weights, optimizer, order of rows, random state, best weights so far, pseudo-labels.
"""

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn
from tqdm import tqdm

from models.fit import fit
from tasks.batches import Batches
from tasks.checkpoint import latest, pack_optimizer, save_checkpoint, unpack_optimizer
from tasks.command import threads
from tasks.settings import fill

__all__ = ["Trained", "Training", "train", "use_threads"]


@dataclass(frozen=True)
class Training:
    """How a run is trained: the settings below `training:` in params.yaml.

    Args:
        epochs: at most so many passes over the rows.
        batch: rows a step.
        lr: Adam's learning rate.
        weight_decay: L2 penalty, for methods that have one in their optimizer.
        patience: stop after so many epochs without a better validation score.
        clip: largest norm of the whole gradient; None for no limit.
        precision: "float32" or "bfloat16" (autocast; weights and Adam stay in float32).
        checkpoint_steps: steps between two checkpoints; one is also written after each epoch.
        seed: of weights, dropout and the order of rows.
    """

    epochs: int = 1
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.0
    patience: int = 5
    clip: float | None = None
    precision: str = "float32"
    checkpoint_steps: int = 500
    seed: int = 7

    def __post_init__(self):
        whole = {"epochs": self.epochs, "batch": self.batch, "patience": self.patience}
        wrong = [f"{name} must be a whole number >= 1, got {value!r}" for name, value in whole.items()
                 if not isinstance(value, int) or value < 1]  # fmt: skip
        if not isinstance(self.lr, (int, float)) or not self.lr > 0:
            wrong.append(f"lr must be a number > 0, got {self.lr!r} (write 1.0e-3, not 1e-3)")
        if not isinstance(self.weight_decay, (int, float)) or self.weight_decay < 0:
            wrong.append(f"weight_decay must be a number >= 0, got {self.weight_decay!r} (write 1.0e-6, not 1e-6)")
        if self.precision not in ("float32", "bfloat16"):
            wrong.append(f"precision must be float32 or bfloat16, got {self.precision!r}")
        if wrong:
            raise ValueError("training settings: " + "; ".join(wrong))

    @classmethod
    def read(cls, settings: dict) -> "Training":
        """Build from params.yaml; a name that is not a setting is refused with the list of those that are."""
        return fill(cls, settings, "training")


@dataclass
class Trained:
    """What a run leaves besides the best weights, which are in the model."""

    curve: list[dict[str, float]] = field(default_factory=list)
    system: list[dict[str, float]] = field(default_factory=list)  # seconds, memory and processor, at the curve's steps
    best_score: float = float("-inf")
    best_epoch: int = 0
    seconds: float = 0.0
    resumed_at: int = 0  # step at which this process took over; 0 for an unbroken run

    @property
    def peak_memory_mb(self) -> float:
        """Largest resident size of this process so far, in MiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def use_threads() -> None:
    """See `tasks.command.threads`; torch has read OMP_NUM_THREADS itself."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads())


def train(
    model: nn.Module,
    batches: Batches,
    settings: Training,
    validate: Callable[[], dict[str, float]],
    name: str,
    checkpoints: Path | None = None,
    device: str = "cpu",
    memory: dict[str, Tensor] | None = None,
    after_epoch: Callable[[int], None] | None = None,
) -> Trained:
    """Train `model` and leave the weights of its best epoch in it.

    Args:
        model: may bring its own `optimizer(lr, weight_decay)`, and `after_step()`, called after each update.
        validate: returns the metrics of one validation, among them `score`, which is maximised.
        checkpoints: folder of the run's checkpoints, unique to what is trained; None keeps none.
        memory: tensors besides the model's that the next step depends on; changed in place.
        after_epoch: called with the number of epochs done, before the checkpoint.

    Raises:
        FloatingPointError: the loss became NaN or infinite.
    """
    optimizer = _optimizer(model, settings)
    follow = getattr(model, "after_step", lambda: None)
    done, best, memory = Trained(), {}, memory or {}
    if checkpoints and (found := latest(checkpoints)):
        best = _restore(found, model, optimizer, batches, memory, done)
        print(f"{name}: continues at step {batches.batch} from {checkpoints}")
    done.resumed_at = batches.batch
    steps, total = batches.per_epoch, batches.per_epoch * settings.epochs
    started = time.monotonic() - done.seconds
    losses = torch.zeros((), device=device)

    def keep() -> None:
        if checkpoints:
            done.seconds = time.monotonic() - started
            save_checkpoint(checkpoints, batches.batch, *_state(model, optimizer, batches, best, memory, done, losses))

    if checkpoints and done.resumed_at:
        losses += found[0]["losses"].to(device)
    precision = {"float32": None, "bfloat16": torch.bfloat16}[settings.precision]
    stopped = batches.batch >= total or _gave_up(done, batches.batch // steps, settings)
    # Under DVC or Prefect there is no terminal: a line now and then instead of a bar that redraws itself.
    patience = 0.5 if sys.stderr.isatty() else 10.0
    with tqdm(total=total, initial=batches.batch, desc=name, unit="step", mininterval=patience, ascii=" =") as bar:
        updates = (
            iter(()) if stopped else fit(model.train(), _moved(batches, device), optimizer, settings.clip, precision)
        )
        for terms in updates:
            follow()
            losses += terms["loss"]
            bar.update()
            epoch, within = divmod(batches.batch, steps)
            if within:
                if batches.batch % settings.checkpoint_steps == 0:
                    keep()
                continue
            model.eval()
            metrics = validate()
            done.curve.append({"step": batches.batch, "epoch": epoch, "loss": losses.item() / steps} | metrics)
            done.system.append({"step": batches.batch, "seconds": time.monotonic() - started} | _system(device))
            bar.set_postfix(loss=f"{losses.item() / steps:.4f}", score=f"{metrics['score']:.4f}")
            losses.zero_()
            if metrics["score"] > done.best_score:
                done.best_score, done.best_epoch = metrics["score"], epoch
                best = {key: value.detach().clone() for key, value in model.state_dict().items()}
            if after_epoch:
                after_epoch(epoch)
            model.train()
            keep()
            if batches.batch >= total or _gave_up(done, epoch, settings):
                break
    done.seconds = time.monotonic() - started
    if not best:
        raise ValueError(f"{name}: no epoch had a finite validation score; the curve is {done.curve}")
    model.load_state_dict(best)
    model.eval()
    return done


def _optimizer(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    if hasattr(model, "optimizer"):
        return model.optimizer(settings.lr, settings.weight_decay)
    if settings.weight_decay:
        raise ValueError(f"{type(model).__name__} is trained without weight_decay; take it out of its training")
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=settings.lr, fused=True)


def _system(device: str) -> dict[str, float]:
    used = os.times()
    found = {
        "memory_mb": psutil.Process().memory_info().rss / 2**20,
        "cpu_seconds": used.user + used.system,
        "host_cpu_percent": psutil.cpu_percent(),
    }
    if device.startswith("cuda"):
        found |= {"gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 2**20}
    return found


def _gave_up(done: Trained, epoch: int, settings: Training) -> bool:
    return epoch - done.best_epoch >= settings.patience


def _moved(batches: Batches, device: str) -> Iterator[dict[str, Tensor]]:
    for batch in batches:
        yield (
            batch if device == "cpu" else {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
        )


def _state(model, optimizer, batches, best, memory, done: Trained, losses: Tensor) -> tuple[dict[str, Tensor], dict]:
    tensors, packed = pack_optimizer(optimizer)
    tensors |= {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in best.items()}
    tensors |= {f"memory.{key}": value for key, value in memory.items()}
    tensors |= {"random": torch.get_rng_state(), "losses": losses}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    plain = {
        "curve": done.curve,
        "system": done.system,
        "best_score": done.best_score,
        "best_epoch": done.best_epoch,
        "seconds": done.seconds,
    }
    return tensors, {"optimizer": packed, "batches": batches.state_dict(), "done": plain}


def _restore(found, model, optimizer, batches, memory: dict[str, Tensor], done: Trained) -> dict[str, Tensor]:
    tensors, state = found
    part = lambda prefix: {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
    model.load_state_dict(part("model."))
    unpack_optimizer(optimizer, tensors, state["optimizer"])
    batches.load_state_dict(state["batches"])
    for name, value in part("memory.").items():
        memory[name].copy_(value)
    torch.set_rng_state(tensors["random"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    for name, value in state["done"].items():
        setattr(done, name, value)
    return part("best.")
