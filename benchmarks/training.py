"""How many rows does multi-task training handle per CPU second, next to torch-rechub and DeepCTR-Torch?

    python benchmarks/training.py CACHE          # the table, into benchmarks/results/training.md
    python benchmarks/training.py CACHE --device cuda --dtype bfloat16 --compile      # ours alone, on a GPU

CACHE is a folder outside the repository: the rivals get a virtual environment there, in which everything is measured,
each library in turn, on the same batches, with the same loss, optimizer and number of threads (one).
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import cycle
from pathlib import Path
from statistics import median
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]
RIVALS = ["torch==2.13.0", "torch-rechub==0.9.0", "deepctr-torch==0.3.0", "numpy>=2.4,<2.5"]

ROWS, DENSE, TASKS = 2048, 63, 2
EMBEDDING, EXPERTS, WIDTHS, TOWERS, DROPOUT = 128, 8, [512, 256], [128, 64], 0.2
# PLE as in MTReclib's `expert_num = 8`: 4 experts of each task and 4 shared, so a task mixes 8.
OWN = SHARED = EXPERTS // 2
BATCHES, LOADED_ROWS = 2, 200_000

# 16 fields each: (rows of the table, exponent of the ids' Zipf law).
MIXES = {
    # A shop's log like MerRec's: user, product, brand, category at three levels, condition, size, colour, shipper,
    # hour, weekday, the categories of the three events before, seen before.
    "log": [(100_000, 0.8), (100_000, 1.0), (8_000, 1.05), (3_400, 1.05), (130, 1.05), (20, 1.05), (6, 1.05),
            (600, 1.05), (20, 1.05), (3, 1.05), (25, 0.5), (8, 0.5), (3_400, 1.05), (3_400, 1.05), (3_400, 1.05),
            (3, 1.05)],
    # The same without the user and the product: attributes only, as in AliExpress's search logs.
    "attributes": [(8_000, 1.05), (3_400, 1.05), (1_000, 1.05), (600, 1.05), (130, 1.05), (100, 1.05), (50, 1.05),
                   (25, 0.5), (20, 1.05), (20, 1.05), (10, 1.05), (8, 0.5), (6, 1.05), (3, 1.05), (3, 1.05), (2, 0.5)],
    # Harder: half of the fields are large id spaces with flat popularity.
    "ids": [(100_000, 0.6)] * 8 + [(3_400, 0.8)] * 4 + [(130, 1.05), (20, 1.05), (8, 0.5), (3, 1.05)],
}  # fmt: skip


def main() -> None:
    options = parse()
    python = environment(options.cache) if options.device == "cpu" else Path(sys.executable)
    if python.absolute() != Path(sys.executable).absolute():
        os.environ["OMP_NUM_THREADS"] = "1"
        os.execv(python, [str(python), *sys.argv])
    sys.path.insert(0, str(REPOSITORY))
    if options.device == "cpu":
        on_cpu(options)
    else:
        on_gpu(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cache", type=Path, help="folder for the rivals' environment and the rows to load")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks/results/training.md")
    parser.add_argument("--mix", choices=[*MIXES, "all"], default="all")
    parser.add_argument("--model", choices=["mmoe", "ple", "both"], default="both")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def environment(cache: Path) -> Path:
    """The Python of a virtual environment with the rivals, made on the first call."""
    python = cache.absolute() / "venv" / "bin" / "python"
    if not (cache / "venv" / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", cache / "venv"], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *RIVALS], check=True)
        (cache / "venv" / "complete").touch()
    return python


# Batches


def ids(size: int, exponent: float, count: int, rng):
    """Ids with Zipf-like popularity, most popular first in no particular place of the table: (count,) int32."""
    import numpy as np

    weight = np.arange(1, size + 1.0) ** -exponent
    rank = np.searchsorted(weight.cumsum() / weight.sum(), rng.random(count)).clip(max=size - 1)
    return rng.permutation(size)[rank].astype(np.int32)


def batches(fields, count: int = BATCHES) -> list[dict]:
    """The same batches for everybody, each library's own form included: forming it is not measured."""
    import numpy as np
    import torch

    rng = np.random.default_rng(7)
    made = []
    for _ in range(count):
        categorical = torch.from_numpy(np.stack([ids(*field, ROWS, rng) for field in fields], 1))
        numerical = torch.from_numpy(rng.random((ROWS, DENSE), dtype=np.float32))
        labels = torch.from_numpy((rng.random((ROWS, TASKS)) < [0.1, 0.02]).astype(np.float32))
        by_name = {f"c{i}": categorical[:, i].long() for i in range(len(fields))}
        by_name |= {f"d{i}": numerical[:, i] for i in range(DENSE)}
        joined = torch.cat([categorical.float(), numerical], 1)
        made.append({"rows": (categorical, numerical, labels), "by_name": by_name, "joined": joined})
    return made


# The libraries, each as a network and the form of batch it reads


def ours(model: str, fields, dropout: float = DROPOUT):
    from models import build

    shape = {"embedding": EMBEDDING, "widths": WIDTHS, "towers": TOWERS, "dropout": dropout, "dense_field": False}
    shape |= {"experts": EXPERTS} if model == "mmoe" else {"own": OWN, "shared": SHARED}
    return build("recommend", model, [size for size, _ in fields], DENSE, TASKS, **shape), "rows"


def rechub(model: str, fields, dropout: float = DROPOUT):
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import MMOE, PLE

    features = [SparseFeature(f"c{i}", size, EMBEDDING) for i, (size, _) in enumerate(fields)]
    features += [DenseFeature(f"d{i}") for i in range(DENSE)]
    kinds = ["classification"] * TASKS
    expert = {"dims": WIDTHS, "activation": "relu", "dropout": dropout}
    towers = [{"dims": TOWERS, "activation": "relu", "dropout": dropout} for _ in kinds]
    if model == "mmoe":
        return MMOE(features, kinds, EXPERTS, expert, towers), "by_name"
    return PLE(features, kinds, 1, OWN, SHARED, expert, towers), "by_name"


def deepctr(model: str, fields, dropout: float = DROPOUT):
    # It asks the package index for its newest version when imported; without `requests` to ask with, it prints a line.
    sys.modules.setdefault("requests", ModuleType("requests"))
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import MMOE, PLE

    columns = [SparseFeat(f"c{i}", size, EMBEDDING) for i, (size, _) in enumerate(fields)]
    columns += [DenseFeat(f"d{i}") for i in range(DENSE)]
    shape = {"expert_dnn_hidden_units": WIDTHS, "gate_dnn_hidden_units": (), "tower_dnn_hidden_units": TOWERS}
    shape |= {"dnn_dropout": dropout, "dnn_use_bn": True, "l2_reg_embedding": 0}
    if model == "mmoe":
        return MMOE(columns, num_experts=EXPERTS, **shape), "joined"
    return PLE(columns, shared_expert_num=SHARED, specific_expert_num=OWN, num_levels=1, **shape), "joined"


LIBRARIES = {"Rootstock": ours, "torch-rechub": rechub, "DeepCTR-Torch": deepctr}


def updates(library: str, network, form: str, made: list[dict], dtype, optimizer) -> Iterator:
    """One training step for each `next`: our own loop, or the usual one around a rival's probabilities."""
    import torch
    import torch.nn.functional as F

    precision = None if dtype == torch.float32 else dtype
    network.train()
    if library == "Rootstock":
        from models.fit import fit

        names = ("categorical", "numerical", "labels")
        yield from fit(
            network, ({**dict(zip(names, batch["rows"], strict=True))} for batch in cycle(made)), optimizer,
            precision=precision,
        )  # fmt: skip
    for batch in cycle(made):
        with torch.autocast("cpu", precision) if precision else nullcontext():
            probability = network(batch[form])
        loss = F.binary_cross_entropy(probability.float(), batch["rows"][2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


# Measuring


def measured(model: str, mix: str, dtype, optimizer: dict, repeats: int, libraries=tuple(LIBRARIES)) -> dict:
    """CPU seconds of one step: library -> one number a repeat; the libraries take turns within every repeat."""
    import torch

    made = batches(MIXES[mix])
    steps, seconds = {}, {}
    for library in libraries:
        torch.manual_seed(0)
        network, form = LIBRARIES[library](model, MIXES[mix])
        adam = torch.optim.Adam(network.parameters(), 1e-3, **optimizer)
        steps[library] = updates(library, network, form, made, dtype, adam)
        seconds[library] = []
        next(steps[library])  # the first step allocates Adam's moments
    for _ in range(repeats):
        for library, step in steps.items():
            before = time.process_time()
            for _ in made:
                next(step)
            seconds[library].append((time.process_time() - before) / len(made))
    return seconds


def ratio(theirs: list[float], our: list[float]) -> str:
    """Median over repeats of their seconds / our seconds, and the extremes."""
    each = sorted(t / o for t, o in zip(theirs, our, strict=True))
    return f"**{median(each):.2f}** ({each[0]:.2f} to {each[-1]:.2f})"


def same_function() -> float:
    """Largest difference between DeepCTR-Torch's probabilities and ours with its weights, in training mode."""
    import torch

    fields = MIXES["log"]
    (theirs, form), (network, _) = deepctr("mmoe", fields, dropout=0), ours("mmoe", fields, dropout=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in theirs.parameters():  # their own start is so small that every output would be 1/2
            parameter.normal_(0, (parameter.shape[-1] + 1) ** -0.5, generator=generator)
        copy_weights(theirs, network)
        batch = batches(fields, 1)[0]
        categorical, numerical, _ = batch["rows"]
        probability = torch.sigmoid(network.train().logits(categorical, numerical))
        return (probability - theirs.train()(batch[form])).abs().max().item()


def copy_weights(theirs, network) -> None:
    """DeepCTR-Torch's MMOE into ours; it puts the numerical columns last, we first."""
    import torch

    def first(weight):
        return torch.cat([weight[:, -DENSE:], weight[:, :-DENSE]], 1)

    def stack(modules, name):
        return torch.stack([getattr(module, name) for module in modules])

    network.inputs.table.copy_(torch.cat([table.weight for table in theirs.embedding_dict.values()]))
    gates = [gate.weight for gate in theirs.gate_dnn_final_layer]
    experts = [expert.linears[0] for expert in theirs.expert_dnn]
    network.first.weight.copy_(first(torch.cat([layer.weight for layer in experts] + gates)))
    network.first.bias.zero_()
    network.first.bias[: EXPERTS * WIDTHS[0]] = torch.cat([layer.bias for layer in experts])
    for layers, dnns in ((network.experts.layers, theirs.expert_dnn), (network.towers.layers[:-1], theirs.tower_dnn)):
        linears = [layer for layer in layers if hasattr(layer, "weight")]
        above = len(dnns[0].linears) - len(linears)  # the experts' first layers are in `network.first`
        for place, layer in enumerate(linears, above):
            layer.weight.copy_(stack([dnn.linears[place] for dnn in dnns], "weight").mT)
            layer.bias.copy_(stack([dnn.linears[place] for dnn in dnns], "bias")[:, None])
        for place, layer in enumerate(layer for layer in layers if hasattr(layer, "norm")):
            layer.norm.weight.copy_(stack([dnn.bn[place] for dnn in dnns], "weight"))
            layer.norm.bias.copy_(stack([dnn.bn[place] for dnn in dnns], "bias"))
    network.towers.layers[-1].weight.copy_(stack(theirs.tower_dnn_final_layer, "weight").mT)
    network.towers.layers[-1].bias.copy_(stack(theirs.out, "bias")[:, None])


def loading(folder: Path) -> float:
    """CPU seconds of one batch: memory-mapped arrays, shuffled rows, tensors."""
    import numpy as np

    from tasks.batches import Batches

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    columns = np.stack([ids(*field, LOADED_ROWS, rng) for field in MIXES["log"]], 1)
    np.save(folder / "categorical.npy", columns)
    np.save(folder / "numerical.npy", rng.random((LOADED_ROWS, DENSE), dtype=np.float32))
    np.save(folder / "labels.npy", np.zeros((LOADED_ROWS, TASKS), dtype=np.int8))
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("categorical", "numerical", "labels")}
    stream = Batches(arrays, ROWS, seed=7)
    given = iter(stream)
    before = time.process_time()
    for _ in range(2 * stream.per_epoch):  # whole epochs: the shuffle of each is part of it
        next(given)
    return (time.process_time() - before) / (2 * stream.per_epoch)


def on_cpu(options) -> None:
    import torch

    torch.set_num_threads(1)
    models = ["mmoe", "ple"] if options.model == "both" else [options.model]
    mixes = list(MIXES) if options.mix == "all" else [options.mix]
    types = ["float32", "bfloat16"] if options.dtype == "both" else [options.dtype]
    difference = same_function()
    rows, stock, load = [], [], loading(options.cache / "rows")
    shares = []
    for mix in mixes:
        for model in models if mix == mixes[0] else models[:1]:
            seconds = {}
            for dtype in types:
                seconds[dtype] = measured(model, mix, getattr(torch, dtype), {"fused": True}, options.repeats)
                print(mix, model, dtype, {name: round(median(s), 3) for name, s in seconds[dtype].items()}, flush=True)
                our = seconds[dtype]["Rootstock"]
                rivals = [ratio(seconds[dtype][name], our) for name in list(LIBRARIES)[1:]]
                half = [ratio(seconds["float32"][name], our) if dtype == "bfloat16" and "float32" in seconds else ""
                        for name in list(LIBRARIES)[1:]]  # fmt: skip
                rows.append([mix, model, dtype, *rivals, *half])
                shares.append(f"{model}, {mix}, {dtype}: {100 * load / median(our):.2f} %")
                if mix == mixes[0]:
                    plain = measured(model, mix, getattr(torch, dtype), {}, options.repeats, list(LIBRARIES)[1:])
                    stock.append([model, dtype, *(ratio(theirs, our) for theirs in plain.values())])
    text = report(rows, stock, shares, difference, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text)
    print(text)


def on_gpu(options) -> None:
    """Ours alone: rows per second, and the share of the memory's speed that the weights' own traffic takes."""
    import torch

    dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
    copied = torch.empty(2**28, device="cuda")
    speed = 2 * copied.nbytes / on_device(lambda: copied.clone())
    for mix in MIXES if options.mix == "all" else [options.mix]:
        for model in ["mmoe", "ple"] if options.model == "both" else [options.model]:
            network, _ = ours(model, MIXES[mix])
            network = network.cuda().train()
            adam = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
            rows = [tensor.cuda() for tensor in batches(MIXES[mix], 1)[0]["rows"]]
            forward = torch.compile(network) if options.compile else network

            def step(forward=forward, adam=adam, rows=rows):
                with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
                    loss, _ = forward(*rows)
                adam.zero_grad()
                loss.backward()
                adam.step()

            seconds = on_device(step)
            # Adam reads weight, gradient and two moments and writes three of them; backward writes the gradient.
            least = 8 * sum(parameter.nbytes for parameter in network.parameters())
            print(
                f"{mix} {model} {dtype} compile={options.compile} {torch.cuda.get_device_name()}: "
                f"{ROWS / seconds:,.0f} rows per second; weights, gradients and moments alone take "
                f"{100 * least / seconds / speed:.0f} % of the memory's speed ({speed / 1e9:,.0f} GB/s measured)"
            )


def on_device(work, warm: int = 5, count: int = 20) -> float:
    """Seconds of one call, the device's queue drained before and after."""
    import torch

    for _ in range(warm):
        work()
    torch.cuda.synchronize()
    before = time.perf_counter()
    for _ in range(count):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - before) / count


# The report


def distinct(mix: str) -> tuple[float, list[int]]:
    """Share of a batch's ids that are distinct within their field, over all fields, and the count of each field."""
    counts = [len(column.unique()) for column in batches(MIXES[mix], 1)[0]["rows"][0].T]
    return sum(counts) / (ROWS * len(counts)), counts


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def report(rows, stock, shares, difference, options) -> str:
    rivals = list(LIBRARIES)[1:]
    over = [f"over {name}" for name in rivals]
    described = []
    for mix, fields in MIXES.items():
        share, counts = distinct(mix)
        listed = ", ".join(f"{size:,} ({count:,})" for (size, _), count in zip(fields, counts, strict=True))
        described.append([mix, f"{100 * share:.0f} %", listed])
    e, (h, g), (t, u) = EXPERTS, WIDTHS, TOWERS
    return f"""# Multi-task training: rows per CPU second

Ratios of rows per CPU second (user and system, one thread), ours over theirs: median of {options.repeats} repeats, and
the extremes. All in one process, the libraries in turn within each repeat, {BATCHES} batches of {ROWS:,} rows each.
16 categorical and {DENSE} numerical fields, embedding {EMBEDDING}, experts {h}-{g}, towers {t}-{u}, batch norm, ReLU,
dropout {DROPOUT}, {TASKS} tasks; MMoE with {e} experts, PLE with {OWN} for each task and {SHARED} shared. Torch's
fused Adam for everybody; bfloat16 is autocast for everybody. On {processor()}.

    python benchmarks/training.py CACHE

{table(["ids", "model", "precision", *over, *(f"{o}'s float32" for o in over)], rows)}

**Ids.** Rows of each field's table, and in brackets how many of them are distinct in a batch: what repeats is what
folding saves (`models/recommend/_inputs.py`).

{table(["ids", "distinct", "fields"], described)}

**Against the rivals as their own trainers run them**, with `torch.optim.Adam(parameters)`, not fused; first ids:

{table(["model", "precision", *over], stock)}

**The same function.** DeepCTR-Torch's MMoE and ours with its weights differ by at most {difference:.1e} in a
probability. torch-rechub's gates have a batch norm that ours have not. PLE: the rivals have one level of two-layer
experts, ours two levels of one layer (as in MTReclib): the same matrix products, and one more mixing in ours.

**Loading and batching** (memory-mapped, shuffled), share of a step: {"; ".join(shares)}.
"""


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {os.cpu_count()} cores" if names else platform.machine()


if __name__ == "__main__":
    main()
