"""How many tokens does pre-training handle per CPU second, next to transformers and litgpt, and in how much memory?

    python benchmarks/pretraining.py CACHE [TEXTS]        # the tables, into benchmarks/results/pretraining.md

CACHE is a folder outside the repository: litgpt gets a virtual environment there, beside the packages of this Python,
and everything is measured in it, each contender in turn, on the same batches, from the same weights, with the same
loss, dropout, clipping, optimizer and number of threads (one). TEXTS, a folder of Parquet (a column of texts) and .txt
files (a text a line), gives the lengths for packing real text; without it the lengths are made up.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import cycle
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parents[1]
RIVALS = ["litgpt==0.5.13", "lightning==2.6.6", "lightning-utilities==0.15.3", "torchmetrics==1.9.0"]
RIVALS += ["jsonargparse==4.53.0"]

ROWS, LENGTH, VOCABULARY, MASKED, CLIP = 32, 128, 21_128, 0.15, 1.0
SHAPE = {"width": 256, "vocabulary": VOCABULARY}
LAYERS = {"layers": 4, "heads": 4, "inner": 1024}
BATCHES, TEXTS_READ = 2, 20_000
OPTIMIZER = {"lr": 1e-4, "weight_decay": 0.01, "fused": True}

BERT, GPT2, ROTARY = "BERT", "GPT-2", "GPT-2 shape, rotary, untied, no dropout"
PLAIN, STOCK, LITGPT, OURS = "transformers, logits at masked places", "transformers", "litgpt", "Rootstock"
CONTENDERS = {BERT: (OURS, PLAIN, STOCK), GPT2: (OURS, STOCK), ROTARY: (OURS, LITGPT)}


def main() -> None:
    options = parse()
    python = environment(options.cache)
    if python.absolute() != Path(sys.executable).absolute():
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(python, [str(python), *sys.argv])
    sys.path.insert(0, str(REPOSITORY))
    import torch

    torch.set_num_threads(1)
    if options.child:
        model, contender, dtype = options.child
        print(peak(model, contender, getattr(torch, dtype), options.cache))
    else:
        everything(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cache", type=Path, help="folder for litgpt's environment and the weights")
    parser.add_argument("texts", type=Path, nargs="*", help="folders of Parquet and text files, for packing")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/pretraining.md")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=["speed", "packing", "memory"],
                        default=["speed", "packing", "memory"])  # fmt: skip
    parser.add_argument("--models", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def environment(cache: Path) -> Path:
    """The Python of a virtual environment with litgpt beside the packages of this Python, made on the first call."""
    home = cache.absolute() / "venv"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        (site / "host.pth").write_text(sysconfig.get_path("purelib"))
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *RIVALS], check=True)
        (home / "complete").touch()
    return python


# Batches


def made_batches(model: str, count: int = BATCHES) -> list[dict]:
    """Full rows of made-up tokens with Zipf-like frequencies: our fields."""
    import numpy as np

    rng = np.random.default_rng(7)
    return [batch_of(model, words(rng, (ROWS, LENGTH)), rng) for _ in range(count)]


def words(rng, shape: tuple[int, ...]):
    """Token numbers from 5 on; the five before are special ones."""
    import numpy as np

    weight = 1 / np.arange(1, VOCABULARY - 4.0)
    return 5 + np.searchsorted(weight.cumsum() / weight.sum(), rng.random(shape)).clip(max=VOCABULARY - 6)


def batch_of(model: str, ids, rng, real=None, documents=None, positions=None) -> dict:
    """The fields of ours for these ids (B, T); every model is asked at the same share of its real places."""
    import numpy as np
    import torch

    real = np.ones(ids.shape, bool) if real is None else real
    fields = {"ids": ids}
    if model == BERT:
        asked = real & (rng.random(ids.shape) < MASKED)
        fields["ids"] = np.where(asked, 4, ids)
        fields["labels_mlm"] = np.where(asked, ids, -100)
        if documents is None:  # packed rows hold many documents, and no sentence follows another
            fields["segments"] = np.broadcast_to(np.arange(ids.shape[1]) >= ids.shape[1] // 2, ids.shape)
            fields["labels_sp"] = rng.integers(0, 2, len(ids))
    else:
        fields["labels_lm"] = np.full(ids.shape, -100)
        same = real[:, 1:] if documents is None else real[:, 1:] & (documents[:, 1:] == documents[:, :-1])
        fields["labels_lm"][:, :-1] = np.where(same, ids[:, 1:], -100)
    fields = {name: value.astype(np.int64) for name, value in fields.items()}
    if not real.all():
        fields["mask"] = real
    if documents is not None:
        fields |= {"documents": documents, "positions": positions}
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in fields.items()}


# The contenders: each is a function of our batch that returns the loss, with its parameters


def recipe(model: str, dropout: float | None = None) -> dict:
    """Ours, from the recipes of the repository."""
    from tasks.recipes import read_recipe

    changes = SHAPE | {"encoder": {"transformer": LAYERS}, "embedding": {"position": {"length": LENGTH}}}
    if model == ROTARY:
        changes |= {"embedding": {"position": None}, "tie": False, "dropout": 0.0}
        changes |= {"encoder": {"transformer": LAYERS | {"positions": "rotary"}}}
    if dropout is not None:
        changes["dropout"] = dropout
    return read_recipe("bert" if model == BERT else "gpt2", None, changes).model


def ours(model: str, dropout: float | None = None):
    """The weights of every contender are drawn here."""
    import torch

    from models.components._model import assemble

    torch.manual_seed(0)
    return assemble(recipe(model, dropout)).train()


def transformers_of(model: str, cache: Path, dropout: float | None = None):
    """The model of transformers that loads what we save."""
    import transformers

    from models.components.pretrained import save

    family, kind = ("bert", "BertForPreTraining") if model == BERT else ("gpt2", "GPT2LMHeadModel")
    folder = save(ours(model, dropout), recipe(model, dropout), cache / "weights" / family, family)
    return getattr(transformers, kind).from_pretrained(folder).train()


def litgpt_of():
    """litgpt's GPT with our weights; it has neither learned positions nor a tied head nor dropout."""
    import torch
    from litgpt.config import Config
    from litgpt.model import GPT

    shape = {"n_embd": SHAPE["width"], "n_layer": LAYERS["layers"], "n_head": LAYERS["heads"], "block_size": LENGTH}
    shape |= {"intermediate_size": LAYERS["inner"], "vocab_size": VOCABULARY, "padded_vocab_size": VOCABULARY}
    network = GPT(Config(**shape, rotary_percentage=1.0, parallel_residual=False, gelu_approximate="tanh"))
    state = ours(ROTARY).state_dict()
    theirs = {
        "transformer.wte.weight": state["embedding.word.weight"],
        "lm_head.weight": state["targets.lm.head.weight"],
    }
    for kind in ("weight", "bias"):
        theirs[f"transformer.ln_f.{kind}"] = state[f"encoder.norm.{kind}"]
        for i in range(LAYERS["layers"]):
            layer, block = f"encoder.layers.{i}", f"transformer.h.{i}"
            parts = [state[f"{layer}.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            theirs |= {
                f"{block}.norm_1.{kind}": state[f"{layer}.attention_norm.{kind}"],
                f"{block}.attn.qkv.{kind}": torch.cat(parts),
                f"{block}.attn.proj.{kind}": state[f"{layer}.attention.output.{kind}"],
                f"{block}.norm_2.{kind}": state[f"{layer}.feedforward_norm.{kind}"],
                f"{block}.mlp.fc.{kind}": state[f"{layer}.feedforward.inner.{kind}"],
                f"{block}.mlp.proj.{kind}": state[f"{layer}.feedforward.outer.{kind}"],
            }
    network.load_state_dict(theirs, strict=True)
    return network.train()


def contender(model: str, name: str, cache: Path, dropout: float | None = None):
    """The network, and its loss as a function of our batch."""
    if name == OURS:
        network = ours(model, dropout)
        return network, lambda batch: network(**batch)[0]
    if name == LITGPT:
        network = litgpt_of()
        return network, partial(litgpt_loss, network)
    network = transformers_of(model, cache, dropout)
    if model == GPT2:
        return network, lambda batch: network(**gpt2_fields(batch)).loss
    if name == STOCK:
        return network, lambda batch: network(**bert_fields(batch)).loss
    return network, partial(masked_loss, network)


def bert_fields(batch: dict) -> dict:
    fields = {"input_ids": batch["ids"], "token_type_ids": batch["segments"], "labels": batch["labels_mlm"]}
    return fields | {"next_sentence_label": batch["labels_sp"]} | attended(batch)


def gpt2_fields(batch: dict) -> dict:
    """Labels are shifted by the model; padding is not asked."""
    labels = batch["ids"] if "mask" not in batch else batch["ids"].where(batch["mask"], -100)
    return {"input_ids": batch["ids"], "labels": labels} | attended(batch)


def attended(batch: dict) -> dict:
    return {"attention_mask": batch["mask"].long()} if "mask" in batch else {}


def masked_loss(network, batch: dict):
    """What a careful user of transformers writes: BertForPreTraining's own modules, its head at masked places."""
    from torch.nn import functional as F

    fields = bert_fields(batch)
    labels, follows = fields.pop("labels"), fields.pop("next_sentence_label")
    hidden, pooled = network.bert(**fields)[:2]
    asked = labels != -100
    logits, second = network.cls.predictions(hidden[asked]), network.cls.seq_relationship(pooled)
    return F.cross_entropy(logits.float(), labels[asked]) + F.cross_entropy(second.float(), follows)


def litgpt_loss(network, batch: dict):
    """As litgpt/pretrain.py does."""
    from litgpt.utils import chunked_cross_entropy

    return chunked_cross_entropy(network(batch["ids"]), batch["labels_lm"])


def updates(name: str, network, loss: Callable, made: list[dict], dtype) -> Iterator:
    """One training step for each `next`: our own loop, or the usual one around a rival's loss."""
    import torch

    precision = None if dtype == torch.float32 else dtype
    optimizer = torch.optim.AdamW(network.parameters(), **OPTIMIZER)
    if name == OURS:
        from models.fit import fit

        yield from fit(network, cycle(made), optimizer, clip=CLIP, precision=precision)
    for batch in cycle(made):
        with torch.autocast("cpu", precision) if precision else nullcontext():
            value = loss(batch)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        optimizer.step()
        yield value.detach()


# Measuring


def alternating(steps: dict, count: int, repeats: int) -> dict:
    """CPU seconds of one step: name -> one number a repeat; all take turns within every repeat."""
    seconds = {name: [] for name in steps}
    for step in steps.values():
        next(step)  # the first step allocates the moments
    for _ in range(repeats):
        for name, step in steps.items():
            before = time.process_time()
            for _ in range(count):
                next(step)
            seconds[name].append((time.process_time() - before) / count)
    return seconds


def speed(model: str, cache: Path, repeats: int) -> dict:
    """(contender, type) -> CPU seconds of a step, one number a repeat."""
    import torch

    made, steps = made_batches(model), {}
    for dtype in (torch.float32, torch.bfloat16):
        for name in CONTENDERS[model]:
            network, loss = contender(model, name, cache)
            steps[name, str(dtype).removeprefix("torch.")] = updates(name, network, loss, made, dtype)
    return alternating(steps, len(made), repeats)


def same_work(model: str, cache: Path) -> tuple[float, float]:
    """Largest differences between each rival and ours, without dropout: of the loss, and of the gradient's norm."""
    import torch

    found = []
    for name in CONTENDERS[model]:
        network, loss = contender(model, name, cache, dropout=0.0)
        value = loss(made_batches(model, 1)[0])
        value.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in network.parameters() if p.grad is not None])
        found.append((value.item(), norm.item()))
    (value, norm), *rivals = found
    return max(abs(v / value - 1) for v, _ in rivals), max(abs(n / norm - 1) for _, n in rivals)


def peak(model: str, name: str, dtype, cache: Path) -> float:
    """MiB at the peak of three steps above what the imports took: for a process of its own."""
    import torch

    made = made_batches(model)
    network, loss = contender(model, name, cache)
    small = torch.nn.Linear(8, 8)
    small(torch.ones(8, 8)).sum().backward()  # loads the kernels
    torch.optim.AdamW(small.parameters(), **OPTIMIZER).step()
    weights = sum(parameter.nbytes for parameter in network.parameters()) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here, with the weights in place
    before = resident() - weights
    step = updates(name, network, loss, made, dtype)
    for _ in range(3):
        next(step)
    return highest() - before


def resident() -> float:
    """MiB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def highest() -> float:
    """MiB of this process in memory at most, since clear_refs."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def memory(model: str, cache: Path) -> dict:
    """(contender, type) -> MiB, each in a process of its own."""
    found = {}
    for dtype in ("float32", "bfloat16"):
        for name in CONTENDERS[model]:
            command = [sys.executable, __file__, str(cache), "--child", model, name, dtype]
            found[name, dtype] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def ratio(theirs: list[float], our: list[float]) -> str:
    """Median over repeats of their seconds / our seconds, and the extremes."""
    each = sorted(t / o for t, o in zip(theirs, our, strict=True))
    return f"**{median(each):.2f}** ({each[0]:.2f} to {each[-1]:.2f})"


def everything(options) -> None:
    options.cache.mkdir(parents=True, exist_ok=True)
    for model in options.models:
        print(model, "same work:", same_work(model, options.cache), flush=True)
        if "speed" in options.parts:
            seconds = speed(model, options.cache, options.repeats)
            for (name, dtype), found in seconds.items():
                our = seconds[OURS, dtype]
                base = "" if dtype == "float32" else "   ours bf16 over their float32 " + ratio(
                    seconds[name, "float32"], our)
                print(f"{model:8} {dtype:9} {name:40} {median(found):.3f} min {min(found):.3f}  {ratio(found, our)}"
                      f"{base}", flush=True)
        if "memory" in options.parts:
            found = memory(model, options.cache)
            for (name, dtype), mib in found.items():
                print(f"{model:8} {dtype:9} {name:40} {mib:.0f} MiB, ours / theirs {found[OURS, dtype] / mib:.2f}")


if __name__ == "__main__":
    main()
