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

BERT, GPT2, ROTARY, MLM = "BERT", "GPT-2", "GPT-2, rotary, untied, no dropout", "BERT, masked words only"
PLAIN, STOCK, LITGPT, OURS = "transformers, logits at masked places", "transformers", "litgpt", "Rootstock"
CONTENDERS = {BERT: (OURS, PLAIN, STOCK), GPT2: (OURS, STOCK), ROTARY: (OURS, LITGPT)}
PACKING = {MLM: PLAIN, GPT2: STOCK}  # without next sentences: packed rows hold many documents, and none follows another


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
    if model in (BERT, MLM):
        asked = real & (rng.random(ids.shape) < MASKED)
        fields["ids"] = np.where(asked, 4, ids)
        fields["labels_mlm"] = np.where(asked, ids, -100)
        if model == BERT:
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
    if model == MLM:
        changes["target"] = {"sp": None}
    if dropout is not None:
        changes["dropout"] = dropout
    return read_recipe("bert" if model in (BERT, MLM) else "gpt2", None, changes).model


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

    kind = {BERT: "BertForPreTraining", MLM: "BertForMaskedLM", GPT2: "GPT2LMHeadModel"}[model]
    family = "gpt2" if model == GPT2 else "bert"
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
    fields = {"input_ids": batch["ids"], "labels": batch["labels_mlm"]}
    if "labels_sp" in batch:
        fields |= {"token_type_ids": batch["segments"], "next_sentence_label": batch["labels_sp"]}
    return fields | attended(batch)


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
    labels, follows = fields.pop("labels"), fields.pop("next_sentence_label", None)
    found, asked = network.bert(**fields), labels != -100
    logits = network.cls.predictions(found.last_hidden_state[asked])
    loss = F.cross_entropy(logits.float(), labels[asked])
    if follows is not None:
        loss = loss + F.cross_entropy(network.cls.seq_relationship(found.pooler_output).float(), follows)
    return loss


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


def packing(model: str, texts: list, cache: Path, repeats: int) -> dict:
    """(contender, "packed" or "padded") -> CPU seconds of a real token, one number a repeat."""
    import torch

    rows = {"packed": packed_batches(model, texts), "padded": padded_batches(model, texts)}
    steps = {}
    for name, kind in ((OURS, "packed"), (OURS, "padded"), (PACKING[model], "padded")):
        network, loss = contender(model, name, cache)
        steps[name, kind] = updates(name, network, loss, rows[kind], torch.float32)
    real = {kind: sum(places(batch) for batch in made) / len(made) for kind, made in rows.items()}
    return {
        key: [second / real[key[1]] for second in seconds]
        for key, seconds in alternating(steps, BATCHES, repeats).items()
    }


def places(batch: dict) -> int:
    """Real tokens, specials among them."""
    return int(batch["mask"].sum()) if "mask" in batch else batch["ids"].numel()


def packed_batches(model: str, texts: list) -> list[dict]:
    """Whole documents, each between its two special tokens, in rows by best fit."""
    import numpy as np

    from models.language.packing import best_fit

    rng = np.random.default_rng(7)
    texts = [texts[number][: LENGTH - 2] for number in rng.permutation(len(texts))[: 40 * BATCHES * ROWS]]
    plan = best_fit([len(text) for text in texts], LENGTH, seed=7, overhead=2)
    made, order = [], rng.permutation(len(plan))
    for start in range(0, BATCHES * ROWS, ROWS):
        ids, documents, positions = (np.zeros((ROWS, LENGTH), np.int64) for _ in range(3))
        for row, number in enumerate(order[start : start + ROWS]):
            place = 0
            for document in range(plan.rows[number], plan.rows[number + 1]):
                text = wrapped(texts[plan.document[document]])
                here = slice(place, place := place + len(text))
                ids[row, here], documents[row, here] = text, document - plan.rows[number]
                positions[row, here] = np.arange(len(text))
        made.append(batch_of(model, ids, rng, ids != 0, documents, positions))
    return made


def padded_batches(model: str, texts: list) -> list[dict]:
    """A document a row, padded to the longest of the batch."""
    import numpy as np

    rng, made = np.random.default_rng(7), []
    for numbers in rng.permutation(len(texts))[: BATCHES * ROWS].reshape(BATCHES, ROWS):
        chosen = [wrapped(texts[number][: LENGTH - 2]) for number in numbers]
        ids = np.zeros((ROWS, max(len(text) for text in chosen)), np.int64)
        for row, text in enumerate(chosen):
            ids[row, : len(text)] = text
        made.append(batch_of(model, ids, rng, ids != 0))
    return made


def wrapped(text) -> list[int]:
    return [2, *text, 3]


def made_texts() -> list:
    """Token numbers of made-up texts; lengths log-normal around 32, as sentences of many corpora are."""
    import numpy as np

    rng = np.random.default_rng(7)
    return [words(rng, (int(size),)) for size in rng.lognormal(np.log(32), 0.7, TEXTS_READ).clip(2, 1000)]


def read_texts(folder: Path) -> list:
    """Token numbers of the first documents of a folder, by a WordPiece tokenizer trained on them."""
    from tempfile import TemporaryDirectory

    import polars as pl
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    from tasks.datasets import corpora

    with TemporaryDirectory() as raw:
        corpora.fetch(Path(raw), folder)
        documents = corpora.read(Path(raw)).select(pl.col("sentences").list.join(" "))
        lines = documents.collect()["sentences"].sample(fraction=1, shuffle=True, seed=7)[:TEXTS_READ].to_list()
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise SystemExit(f"error: {folder} has no texts")
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        lines, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    return [found.ids for found in tokenizer.encode_batch(lines) if found.ids]


def ratio(theirs: list[float], our: list[float]) -> str:
    """Median over repeats of their seconds / our seconds, and the extremes."""
    each = sorted(t / o for t, o in zip(theirs, our, strict=True))
    return f"**{median(each):.2f}** ({each[0]:.2f} to {each[-1]:.2f})"


# The report


def everything(options) -> None:
    options.cache.mkdir(parents=True, exist_ok=True)
    fast, lean, even = [], [], []
    for model in options.models if "speed" in options.parts else ():
        even.append((model, *same_work(model, options.cache)))
        seconds = speed(model, options.cache, options.repeats)
        for dtype in ("float32", "bfloat16"):
            our = seconds[OURS, dtype]
            for name in CONTENDERS[model][1:]:
                wide = ratio(seconds[name, "float32"], our) if dtype == "bfloat16" else ""
                rates = [f"{rate(seconds[each, dtype]):,.0f}" for each in (OURS, name)]
                fast.append([model, dtype, name, *rates, ratio(seconds[name, dtype], our), wide])
                print(fast[-1], flush=True)
    for model in options.models if "memory" in options.parts else ():
        found = memory(model, options.cache)
        for dtype in ("float32", "bfloat16"):
            for name in CONTENDERS[model][1:]:
                our, their = found[OURS, dtype], found[name, dtype]
                lean.append([model, dtype, name, f"{our:,.0f}", f"{their:,.0f}", f"**{our / their:.2f}**"])
                print(lean[-1], flush=True)
    packs = packed_rows(options) if "packing" in options.parts else []
    text = report(fast, lean, packs, even, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


def packed_rows(options) -> list[list[str]]:
    rows = []
    for folder in options.texts or [None]:
        texts = made_texts() if folder is None else read_texts(folder)
        sizes = [len(text) for text in texts]
        told = "made up" if folder is None else f"{folder.parent.name}/{folder.name}"
        told += f", {len(texts):,} texts, {sum(sizes) / len(sizes):.0f} tokens (median {median(sizes):.0f})"
        for model, rival in PACKING.items():
            found = packing(model, texts, options.cache, options.repeats)
            our = found[OURS, "packed"]
            rows.append([told, model, ratio(found[OURS, "padded"], our), ratio(found[rival, "padded"], our)])
            print(rows[-1], flush=True)
    return rows


def rate(seconds: list[float]) -> float:
    return ROWS * LENGTH / median(seconds)


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def report(fast, lean, packs, even, options) -> str:
    speeds = table(
        ["model", "precision", "rival", "ours, tokens/s", "rival, tokens/s", "ours / rival", "over its float32"], fast
    )
    differences = "; ".join(f"{model}: {loss:.0e} and {norm:.0e}" for model, loss, norm in even)
    return f"""# Pre-training: tokens per CPU second, and memory

Ratios of tokens per CPU second (user and system, one thread), ours over theirs: median of {options.repeats} repeats,
and the extremes. All in one process, the contenders in turn within each repeat, {BATCHES} batches of {ROWS} x {LENGTH}
tokens each. {LAYERS["layers"]} layers, width {SHAPE["width"]}, {LAYERS["heads"]} heads, inner {LAYERS["inner"]},
vocabulary {VOCABULARY:,}, dropout 0.1 where not said otherwise; forward, backward, gradient norm clipped at {CLIP},
torch's fused AdamW for everybody; bfloat16 is autocast for everybody. On {processor()}.

    python benchmarks/pretraining.py CACHE TEXTS...

{speeds}

BERT is masked words ({100 * MASKED:.0f} % of the places) and next sentences. "{PLAIN}" is a plain loop around
BertForPreTraining's modules that forms logits there only; "transformers" is its own loss. litgpt has neither learned
positions nor a tied head nor dropout, and nor has ours beside it.

**The same work.** All start from the same weights, those of transformers through the checkpoint that ours writes.
Without dropout the loss and the norm of its gradient differ from ours by (relative): {differences}.

**Memory** at the peak of three steps: weights, gradients, moments, activations; MiB of the process (VmHWM, reset when
the model stands) above what it held before the model, each in a process of its own.

{table(["model", "precision", "rival", "ours, MiB", "rival, MiB", "ours / rival"], lean)}

**Packing.** Real tokens per CPU second, float32: ours with whole documents packed by best fit into rows of {LENGTH},
over a document a row, cut at {LENGTH} and padded to the longest of its batch of {ROWS}, ours and theirs.

{table(["texts", "model", "packed / padded", "packed / theirs, padded"], packs)}
"""


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores" if names else platform.machine()


if __name__ == "__main__":
    main()
