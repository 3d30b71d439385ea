"""One training run of a model of components: global steps, exact resume, evaluation, early stop, curve.

`models/fit.py` knows the step, this file knows the run. Step s of a global batch of G rows takes the G rows from s G on
of its source, which is a pure function of their numbers; the random state of a micro-batch is a function of the seed
and of its first row. So weights, optimizer, schedule and the number of the step are all that a checkpoint needs to
continue bit for bit, and a run of 1, 2 or 4 ranks sees the same rows. Under torchrun, rank 0 writes whole tensors: a
run may go on with another number of ranks.
"""

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from models import parallel, schedules
from models.fit import NotFinite, fit, total_counts
from models.flops import mfu, peak
from models.muon import Muon, matrices_of_layers
from tasks.checkpoint import latest, pack_optimizer, save_checkpoint, unpack_optimizer
from tasks.files import write_json
from tasks.settings import fill

__all__ = [
    "DataChanged", "Diverged", "Engine", "HeldOut", "OPTIMIZERS", "Run", "Source", "launched", "make_optimizer", "plan",
    "run",
]  # fmt: skip

WARM = 10  # steps of a process that its rates leave out: compilation, caches, allocation
MARKER = "stopped.json"
OPTIMIZERS = ("adamw", "muon", "adafactor")


class Diverged(ValueError):
    """The loss or the gradient is not finite; the last checkpoint is from before."""


class DataChanged(ValueError):
    """A checkpoint was trained on other data than the run that would continue it."""


class Source(Protocol):
    """Where rows come from: tasks/source.py, or anything of the same form."""

    fingerprint: str  # changes with the data, the tokenizer and the processing

    def __len__(self) -> int:
        """Rows of an epoch."""

    def rows(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of these rows, numbered from 0 without end: a pure function of the numbers."""


@dataclass(frozen=True)
class Engine:
    """How a run is trained: the settings below `training:` in params.yaml.

    Args:
        steps: updates in all.
        batch: rows of one update, all ranks and micro-batches together.
        micro: rows that one rank computes at once; None for its whole share. Changes memory and speed, not the loss.
        lr: top learning rate.
        optimizer: "adamw"; "muon", which moves the matrices of layers by models/muon.py and the rest by AdamW; or
            "adafactor". The last two need whole matrices, which fsdp cuts.
        betas: of AdamW.
        weight_decay: on tensors of two or more dimensions except embedding tables.
        schedule: name in models/schedules.py, or {name: settings}.
        warmup: of the schedule, in steps or below 1 as a share of the run; None for the schedule's own.
        clip: largest norm of the whole gradient; None for no limit.
        precision: "float32" or "bfloat16" (autocast; weights and optimizer stay in float32).
        parallel: "ddp" or "fsdp", once there is more than one rank.
        activations: "none", "selective" or "full": what is computed again instead of kept.
        compile: the blocks, by torch.compile.
        checkpoint_steps: steps between two checkpoints; one is also written at the end.
        evaluate_steps: steps between two evaluations, each a row of the curve; None for a twentieth of the run.
        evaluate_rows: held-out rows of an evaluation, at most; always the same ones.
        patience: stop after so many evaluations without a better one, and keep the best one's weights; None runs to
            the end and keeps the last.
        seed: of weights, dropout and the order of rows.
    """

    steps: int = 1000
    batch: int = 32
    micro: int | None = None
    lr: float = 5e-4
    optimizer: str = "adamw"
    betas: Sequence[float] = (0.9, 0.95)
    weight_decay: float = 0.1
    schedule: str | Mapping[str, Mapping] = "cosine"
    warmup: float | None = None
    clip: float | None = 1.0
    precision: str = "float32"
    parallel: str = "ddp"
    activations: str = "none"
    compile: bool | str = False
    checkpoint_steps: int = 1000
    evaluate_steps: int | None = None
    evaluate_rows: int = 1024
    patience: int | None = None
    seed: int = 7

    def __post_init__(self):
        must = {"steps": self.steps, "batch": self.batch, "checkpoint_steps": self.checkpoint_steps,
                "evaluate_rows": self.evaluate_rows}  # fmt: skip
        may = {"micro": self.micro, "evaluate_steps": self.evaluate_steps, "patience": self.patience}
        whole = must | {name: value for name, value in may.items() if value is not None}
        wrong = [f"{name} must be a whole number >= 1, got {value!r}" for name, value in whole.items()
                 if not isinstance(value, int) or value < 1]  # fmt: skip
        if not isinstance(self.lr, (int, float)) or not self.lr > 0:
            wrong.append(f"lr must be a number > 0, got {self.lr!r} (write 1.0e-3, not 1e-3)")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            if not (value is None and name == "clip") and (not isinstance(value, (int, float)) or value < 0):
                wrong.append(f"{name} must be a number >= 0, got {value!r}")
        allowed = {"optimizer": OPTIMIZERS, "precision": ("float32", "bfloat16"),
                   "parallel": ("ddp", "fsdp"), "activations": parallel.ACTIVATIONS}  # fmt: skip
        wrong += [f"{name} must be one of {', '.join(values)}, got {getattr(self, name)!r}"
                  for name, values in allowed.items() if getattr(self, name) not in values]  # fmt: skip
        if len(self.betas) != 2 or not all(isinstance(beta, (int, float)) and 0 <= beta < 1 for beta in self.betas):
            wrong.append(f"betas must be two numbers in 0..1, got {self.betas!r}")
        if self.optimizer != "adamw" and self.parallel == "fsdp":
            wrong.append(
                f"{self.optimizer} needs whole matrices, which fsdp cuts; set parallel: ddp or optimizer: adamw"
            )
        if wrong:
            raise ValueError("training settings: " + "; ".join(wrong))
        name, settings = self.scheduled
        schedules.check(name, self.steps, **settings)

    @classmethod
    def read(cls, settings: Mapping) -> "Engine":
        """Build from params.yaml; a name that is not a setting is refused with the list of those that are."""
        return fill(cls, settings, "training")

    @property
    def scheduled(self) -> tuple[str, dict]:
        """The schedule's name and settings."""
        if isinstance(self.schedule, Mapping) and len(self.schedule) != 1:
            raise ValueError(f"training settings: schedule names one schedule, got {len(self.schedule)}")
        name, settings = (self.schedule, {}) if isinstance(self.schedule, str) else next(iter(self.schedule.items()))
        return name, dict(settings or {}) | ({} if self.warmup is None else {"warmup": self.warmup})

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the forward pass's products; None for the weights' own."""
        return {"float32": None, "bfloat16": torch.bfloat16}[self.precision]

    @property
    def between(self) -> int:
        """Steps between two evaluations."""
        return self.evaluate_steps or max(1, self.steps // 20)

    @property
    def decisive(self) -> dict:
        """The settings that decide the result; the others (how it is cut, when it is looked at) may change midway."""
        free = {"micro", "parallel", "activations", "compile", "checkpoint_steps"}
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name not in free}))


@dataclass
class Run:
    """What a run leaves besides the weights, which are in the model."""

    curve: list[dict[str, float | None]] = field(default_factory=list)
    step: int = 0
    tokens: int = 0  # real ones; padding never counts
    best_score: float = float("-inf")
    best_step: int = 0
    seconds: float = 0.0  # of training: without evaluations and checkpoints
    resumed_at: int = 0  # step at which this process took over; 0 for an unbroken run
    stopped: bool = False  # asked to stop by SIGTERM before the end: the next run continues
    tokens_per_second: float = 0.0  # of all ranks, by this process, without its first steps
    wait_share: float = 0.0  # of the training time, spent waiting for rows
    mfu: float | None = None  # where the device's peak is known

    def told(self) -> dict[str, float | None]:
        """What a run.json says of it."""
        names = ("tokens", "best_step", "seconds", "tokens_per_second", "wait_share", "mfu")
        return {"steps": self.step} | {name: getattr(self, name) for name in names}


class HeldOut:
    """Evaluation on rows that never change: the first `count` of a held-out source, each rank its share of them.

    Gives the loss over all labels of these rows, however they are cut, the model's terms, and of a loss per token the
    perplexity.
    """

    def __init__(self, source: Source, settings: Engine, device: str = "cpu"):
        count, over = min(len(source), settings.evaluate_rows), parallel.world()
        if count < over:
            raise ValueError(f"the held-out source has {count} rows for {over} ranks; add data, or shorten the rows")
        first, last = (number * count // over for number in (parallel.rank(), parallel.rank() + 1))
        largest = -(-count // over)
        size = settings.micro or min(largest, settings.batch)
        self.batches = [_on(source.rows(part), device) for part in _parts(first, last, size)]
        # Wrapped models run in step: a rank that has fewer batches computes its first again and does not count it.
        self.idle = -(-largest // size) - len(self.batches)
        self.precision, self.rows = settings.dtype, count

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> dict[str, float]:
        counts = total_counts(model, self.batches, parallel.world())
        total: dict[str, Tensor] = {}
        for index, batch in enumerate([*self.batches, *self.batches[:1] * self.idle]):
            device = next(iter(batch.values())).device.type
            with torch.autocast(device, self.precision) if self.precision else nullcontext():
                loss, terms = model(counts=counts, **batch)
            for name, term in ({"loss": loss} | dict(terms)).items():
                term = term.detach().double() * (index < len(self.batches))
                total[name] = total[name] + term if name in total else term
        found = {name: value.item() for name, value in parallel.add_up(total, parallel.world()).items()}
        per_token = next((name for name in ("lm", "mlm") if name in found), None)
        return found | ({"perplexity": math.exp(min(found[per_token], 700.0))} if per_token else {})


@contextmanager
def launched() -> Iterator[str | None]:
    """Join the ranks that torchrun started; yields this rank's device, or None for a process of its own."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    device = f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu"
    if device != "cpu":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device != "cpu" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def make_optimizer(model: nn.Module, settings: Engine) -> tuple[torch.optim.Optimizer, str]:
    """The optimizer over what is to be trained, and a line that says which tensors decay.

    Raises:
        ValueError: nothing is to be trained; muon for a model without layers, or one whose parts have their own rates.
    """
    tables = {id(table) for table in parallel.tables(model)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(f"{type(model).__name__} has no parameter to train: all are frozen")
    decays = [p for p in trained if p.ndim >= 2 and id(p) not in tables]
    rest = [p for p in trained if p.ndim < 2 or id(p) in tables]
    groups = [{"params": decays, "weight_decay": settings.weight_decay}, {"params": rest, "weight_decay": 0.0}]
    if hasattr(own := parallel.inner(model), "parameter_groups"):  # parts that learn at rates of their own
        groups = own.parameter_groups(settings.lr, settings.weight_decay)
    if settings.optimizer == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=tuple(settings.betas), eps=1e-8, fused=True)
    elif settings.optimizer == "muon":
        optimizer = _muon(own, groups, settings)
    else:
        optimizer = torch.optim.Adafactor(groups, lr=settings.lr)
    if hasattr(own, "hook_optimizer"):  # what acts on gradients after clipping
        own.hook_optimizer(optimizer)
    size = lambda part: f"{len(part)} tensors ({sum(p.numel() for p in part):,} numbers)"
    return optimizer, (f"{settings.optimizer}: weight decay {settings.weight_decay:g} on {size(decays)}, none on "
                       f"{size(rest)}: norms, biases and embedding tables")  # fmt: skip


def _muon(model: nn.Module, groups: list[dict], settings: Engine) -> Muon:
    matrices = matrices_of_layers(model)
    if not matrices or hasattr(model, "parameter_groups"):
        why = "learns its parts at rates of their own" if matrices else "has no layers with matrices to train"
        raise ValueError(f"{type(model).__name__} {why}; set optimizer: adamw")
    theirs = {id(matrix) for matrix in matrices}
    rest = [group | {"params": [p for p in group["params"] if id(p) not in theirs]} for group in groups]
    rest = [group for group in rest if group["params"]]
    return Muon(matrices, rest, settings.lr, tuple(settings.betas), settings.weight_decay)


def plan(model: nn.Module, source: Source, settings: Engine) -> str:
    """What the run will do, before it costs anything: rows, tokens, checkpoints, disk."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    moments = 0.01 if settings.optimizer == "adafactor" else 2  # muon's are fewer: one of each matrix
    disk = 2 * size * (1 + moments + (settings.patience is not None))
    rows, looked_at = settings.steps * settings.batch, min(settings.batch, 8)
    tokens = _tokens(source.rows(range(looked_at))) / looked_at * rows
    return (f"{settings.steps:,} steps x {settings.batch:,} rows = {rows:,} rows, {rows / len(source):.2f} epochs of "
            f"{len(source):,}, about {tokens:,.0f} tokens; "
            f"{-(-settings.steps // settings.checkpoint_steps)} checkpoints, two kept: "
            f"{disk / 2**20:,.1f} MiB of disk")  # fmt: skip


def run(
    model: nn.Module,
    source: Source,
    settings: Engine,
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
    checkpoints: Path | None = None,
    name: str = "train",
    device: str = "cpu",
    flops: float | None = None,
) -> Run:
    """Train `model`, and leave in it the last weights, or with `patience` the best.

    Args:
        model: on its device, with equal weights on every rank; changed in place, and cut by fsdp:
            `models.parallel.full_state` gives its whole tensors.
        source: rows to train on.
        evaluate: metrics of the model in eval mode, without gradients, by every rank; of them `score` is maximised, or
            without it `loss` minimised.
        checkpoints: folder of the run's checkpoints, unique to what is trained; None keeps none.
        name: of the run, in what is printed.
        flops: operations per token (models/flops.py), for the MFU.

    Raises:
        Diverged: the loss or gradient became NaN or infinite; names step and rows. Checkpoints are kept.
        DataChanged: the checkpoint is of other data.
        ValueError: the batch cannot be shared among the ranks; the checkpoint is of another model or other settings.
    """
    return _Loop(model, source, settings, evaluate, checkpoints, name, device, flops).run()


class _Loop:
    def __init__(self, model, source, settings, evaluate, checkpoints, name, device, flops):
        if settings.batch % parallel.world():
            raise ValueError(f"{name}: a batch of {settings.batch} rows cannot be shared evenly by {parallel.world()} "
                             f"ranks; make it a multiple of them")  # fmt: skip
        self.source, self.settings, self.evaluate, self.name = source, settings, evaluate, name
        self.checkpoints, self.device, self.flops = checkpoints and Path(checkpoints), device, flops
        self.chief = parallel.rank() == 0
        self.model = parallel.wrap(model, settings.parallel, settings.dtype, settings.activations, settings.compile)
        self.optimizer, told = make_optimizer(self.model, settings)
        schedule, more = settings.scheduled
        self.scheduler = schedules.schedule(self.optimizer, schedule, settings.steps, **more)
        self.done, self.best = Run(), {}
        self.losses, self.since = torch.zeros((), device=device), 0  # since the curve's last row
        self.window = [0, 0.0]  # tokens and seconds since then
        self.rate = [0, 0.0, 0.0]  # tokens, seconds and seconds waited, without the first steps of this process
        self.say(f"{plan(model, source, settings)}; {told}")

    def say(self, text: str) -> None:
        if self.chief:
            print(f"{self.name}: {text}", flush=True)

    def run(self) -> Run:
        done, settings = self.done, self.settings
        if self.checkpoints and (found := latest(self.checkpoints)):
            self.restore(*found)
            self.say(f"continues at step {done.step} from {self.checkpoints}")
        done.resumed_at = done.step
        if any(value != done.step for value in self.every_rank(done.step)):
            raise ValueError(f"{self.name}: the ranks found different checkpoints in {self.checkpoints}, this one step "
                             f"{done.step}; the folder must be the same for all")  # fmt: skip
        if self.checkpoints and self.chief:
            (self.checkpoints / MARKER).unlink(missing_ok=True)
        if self.evaluate and not done.curve:
            self.look({})
        feed = _Feed(self.source, settings, done.step, self.device)
        kept = done.step
        # Under DVC or Prefect there is no terminal: a line now and then instead of a bar that redraws itself.
        patience = 0.5 if sys.stderr.isatty() else 10.0
        with _asked_to_stop() as asked, tqdm(
            total=settings.steps, initial=done.step, desc=self.name, unit="step", mininterval=patience, ascii=" =",
            **({} if self.chief else {"disable": True}),
        ) as bar:  # fmt: skip
            updates = self.updates(feed)
            while done.step < settings.steps and not done.stopped and not self.gave_up():
                terms = self.update(updates, feed)
                bar.update()
                done.stopped, tokens = self.agree(bool(asked), feed.tokens)
                done.tokens += tokens
                self.window[0] += tokens
                self.rate[0] += tokens * (done.step - done.resumed_at > WARM)
                done.stopped &= done.step < settings.steps
                if done.step % settings.between == 0 or done.step == settings.steps:
                    self.look(terms)
                    bar.set_postfix(loss=f"{done.curve[-1]['loss']:.4f}")
                if done.step % settings.checkpoint_steps == 0 or done.stopped:
                    self.keep()
                    kept = done.step
            updates.close()
        self.rates()
        if kept != done.step:
            self.keep()
        if done.stopped:
            self.mark()
        elif self.best:
            parallel.load_state(self.model, self.best)
        parallel.inner(self.model).eval()
        return done

    def updates(self, feed: "_Feed") -> Iterator[dict[str, Tensor]]:
        settings, began = self.settings, self.done.step

        def seeded(step: int, micro: int) -> None:
            row = feed.micro_batches(began + step - 1)[micro][0]
            torch.manual_seed(int(np.random.SeedSequence([settings.seed, row]).generate_state(1, np.uint64)[0]))

        # An endless limit still looks at the gradient: an infinite one would reach the weights, and a checkpoint.
        clip = math.inf if settings.clip is None else settings.clip
        return fit(self.model.train(), feed, self.optimizer, clip, settings.dtype, self.scheduler, seeded)

    def update(self, updates: Iterator[dict[str, Tensor]], feed: "_Feed") -> dict[str, Tensor]:
        began, waited = time.perf_counter(), feed.waited
        try:
            terms = next(updates)
        except NotFinite as error:
            raise self.diverged(error) from None
        spent, self.done.step = time.perf_counter() - began, self.done.step + 1
        self.losses += terms["loss"]
        self.since += 1
        self.done.seconds += spent
        self.window[1] += spent
        if self.done.step - self.done.resumed_at > WARM:
            self.rate[1] += spent
            self.rate[2] += feed.waited - waited
        return terms

    def diverged(self, error: NotFinite) -> Diverged:
        first, size = self.done.step * self.settings.batch, self.settings.batch
        found = sorted(self.checkpoints.glob("step-*.safetensors")) if self.checkpoints else []
        good = f"the last good checkpoint is {found[-1]}" if found else "there is no checkpoint yet"
        where = f"step {self.done.step + 1}, rows {first}..{first + size - 1} of the source"
        return Diverged(f"{self.name}: {error.told(where)}; {good}")

    def agree(self, stop: bool, tokens: int) -> tuple[bool, int]:
        """One answer for all ranks: stop if any was asked to; tokens of all."""
        if parallel.world() == 1:
            return stop, tokens
        both = torch.tensor([int(stop), tokens], device=self.device)
        dist.all_reduce(both)
        return bool(both[0]), int(both[1])

    def every_rank(self, value: int) -> list[int]:
        if parallel.world() == 1:
            return [value]
        found: list[int] = [0] * parallel.world()
        dist.all_gather_object(found, value)
        return found

    def look(self, terms: dict[str, Tensor]) -> None:
        """Evaluate, add a row to the curve, and remember the weights when they are the best so far."""
        done = self.done
        metrics = {}
        if self.evaluate:
            self.model.eval()
            with torch.no_grad():
                metrics = self.evaluate(self.model)
            self.model.train()
        score = metrics.get("score", -metrics["loss"] if "loss" in metrics else float("nan"))
        row = {"step": done.step, "loss": self.losses.item() / self.since if self.since else None}
        row |= {f"heldout_{name}": value for name, value in metrics.items()}
        row |= {name: value.item() for name, value in terms.items() if name != "loss"}
        row |= {"lr": self.scheduler.get_last_lr()[0], "tokens": done.tokens, "seconds": done.seconds,
                "tokens_per_second": self.window[0] / self.window[1] if self.window[1] else None}  # fmt: skip
        done.curve.append(row)
        self.losses.zero_()
        self.since, self.window = 0, [0, 0.0]
        if score > done.best_score:
            done.best_score, done.best_step = score, done.step
            if self.settings.patience:
                self.best = parallel.full_state(self.model)

    def gave_up(self) -> bool:
        behind = sum(row["step"] > self.done.best_step for row in self.done.curve)
        return self.settings.patience is not None and behind >= self.settings.patience

    def rates(self) -> None:
        done = self.done
        tokens, seconds, waited = self.rate
        if not seconds:  # a run shorter than the warm-up
            tokens, seconds = done.tokens, done.seconds
        done.tokens_per_second = tokens / seconds if seconds else 0.0
        done.wait_share = waited / seconds if seconds else 0.0
        top = peak(torch.cuda.get_device_name(self.device)) if str(self.device).startswith("cuda") else None
        if top and self.flops:
            done.mfu = mfu(self.flops, done.tokens_per_second / parallel.world(), top)
        used = f", MFU {done.mfu:.1%}" if done.mfu is not None else ""
        self.say(f"step {done.step} of {self.settings.steps}, {done.tokens:,} tokens, {done.tokens_per_second:,.0f} "
                 f"tokens/s{used}, {done.wait_share:.1%} of the time waiting for rows")  # fmt: skip

    def keep(self) -> None:
        if not self.checkpoints:
            return
        moments, packed = pack_optimizer(self.optimizer)
        tensors = {}
        for key, value in moments.items():  # one whole tensor at a time: all would not fit where a share does
            gathered = parallel.whole(value)
            if self.chief:
                tensors[key] = gathered.cpu()
        tensors |= {f"model.{key}": value for key, value in parallel.full_state(self.model).items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        done = self.done
        state = {
            "optimizer": packed,
            "scheduler": self.scheduler.state_dict(),
            "data": {"fingerprint": self.source.fingerprint, "rows": len(self.source)},
            "settings": self.settings.decisive,
            "losses": [self.losses.item(), self.since, self.window],
            "done": {
                key: getattr(done, key) for key in ("curve", "step", "tokens", "best_score", "best_step", "seconds")
            },
        }
        if self.chief:
            save_checkpoint(self.checkpoints, done.step, tensors, state)
        if parallel.world() > 1:
            dist.barrier()

    def restore(self, tensors: dict[str, Tensor], state: dict) -> None:
        where = f"{self.checkpoints}, step {state['done']['step']},"
        if state["data"]["fingerprint"] != self.source.fingerprint:
            was, rows = state["data"]["fingerprint"][:16], state["data"]["rows"]
            now = f"{self.source.fingerprint[:16]} ({len(self.source)} rows)"
            raise DataChanged(f"{self.name}: {where} was trained on data {was} ({rows} rows), this run has {now}; "
                              f"restore the data, or delete the folder to start anew")  # fmt: skip
        was = state["settings"]
        if changed := [f"{key} {was.get(key)!r} -> {value!r}" for key, value in self.settings.decisive.items()
                       if was.get(key) != value]:  # fmt: skip
            raise ValueError(f"{self.name}: {where} was trained with other settings: {', '.join(changed)}; take them "
                             f"back, or delete the folder to start anew")  # fmt: skip
        part = lambda prefix: {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        parallel.load_state(self.model, part("model."))
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments = {}
        for key, value in part("optimizer.").items():
            parameter = parameters[int(key.split(".", 1)[0])]
            cut = parallel.shard_like(parameter, value) if value.shape == parameter.shape else value
            moments[f"optimizer.{key}"] = cut
        unpack_optimizer(self.optimizer, moments, state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.best = part("best.")
        losses, self.since, self.window = state["losses"]
        self.losses += losses
        for key, value in state["done"].items():
            setattr(self.done, key, value)

    def mark(self) -> None:
        """Leave a word that the run is to be continued."""
        self.say(
            f"stopped by SIGTERM after step {self.done.step} of {self.settings.steps}; the next run continues there"
        )
        if self.checkpoints and self.chief:
            write_json(self.checkpoints / MARKER, {"step": self.done.step, "steps": self.settings.steps})


class _Feed:
    """This rank's micro-batches, step after step, prepared one step ahead by a thread."""

    def __init__(self, source: Source, settings: Engine, start: int, device: str):
        self.source, self.settings, self.start, self.device = source, settings, start, device
        self.waited, self.tokens = 0.0, 0  # seconds without rows so far; real tokens of the step at hand

    def __iter__(self) -> Iterator[list[dict[str, Tensor]]]:
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.make, self.start)
            for step in range(self.start, self.settings.steps):
                began = time.perf_counter()
                batches, self.tokens = ahead.result()
                if step + 1 < self.settings.steps:
                    ahead = pool.submit(self.make, step + 1)
                self.waited += time.perf_counter() - began
                yield [_on(batch, self.device) for batch in batches]

    def make(self, step: int) -> tuple[list[dict[str, Tensor]], int]:
        batches = [self.source.rows(part) for part in self.micro_batches(step)]
        return batches, sum(map(_tokens, batches))

    def micro_batches(self, step: int) -> list[range]:
        """The rows of this rank at a step, micro-batch by micro-batch."""
        share = self.settings.batch // parallel.world()
        first = step * self.settings.batch + parallel.rank() * share
        return _parts(first, first + share, self.settings.micro or share)


@contextmanager
def _asked_to_stop() -> Iterator[list[int]]:
    """A list that SIGTERM fills: the step at hand is finished first."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # only there may Python handle signals
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _parts(first: int, last: int, size: int) -> list[range]:
    return [range(start, min(start + size, last)) for start in range(first, last, size)]


def _on(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return batch if device == "cpu" else {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _tokens(batch: Mapping[str, Tensor]) -> int:
    """Real tokens: what the masks call real; all places of ids without a mask; rows where there is neither."""
    masks = [value for name, value in batch.items() if name.split("_")[-1] == "mask"]
    ids = [value for name, value in batch.items()
           if name.endswith("ids") and f"{name.removesuffix('ids')}mask" not in batch]  # fmt: skip
    counted = sum(int(mask.sum()) for mask in masks) + sum(value.numel() for value in ids)
    return counted or len(next(iter(batch.values())))
