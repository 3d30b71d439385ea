"""Does distillation help the smallest of several tasks? Three tasks with one latent rule, five seeds, one table.

    python benchmarks/multi_task_distillation.py [--seeds 5] [--smallest 200] [--steps 500] [--out FILE.md]

A row is 12 words; each word has a weight that no model is told, and the sum of a row's weights is its latent value. The
tasks ask for its sign (many rows), its quarter (fewer) and whether it is large (200 rows), each with a tenth of its
labels wrong; test rows have none wrong. All models are of one size, with equal steps and seeds. BAM and KD-MTL learn
from single-task networks, MKD from one multi-task network and MT-DNN from three, as they are published.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import build
from models.components._model import assemble
from models.distill.tasks._learner import Learner, answers_of, new_head
from models.distill.tasks._lesson import Task
from models.distill.tasks._sampler import TaskSampler
from models.fit import fit
from tasks.files import write_text
from tasks.training import use_threads

WORDS, LENGTH, TEST, BATCH, LR, WRONG = 60, 12, 2000, 32, 4e-3, 0.1
CLASSES = {"sign": 2, "quarter": 4, "large": 2}
WAYS = {  # name in the table -> method, its settings, and who teaches
    "plain multi-task": ("mt_dnn", {}, None),
    "MKD, one multi-task teacher": ("mkd", {}, "one"),
    "MT-DNN, three multi-task teachers": ("mt_dnn", {}, "three"),
    "BAM, single-task teachers": ("bam", {}, "single"),
    "KD-MTL, single-task teachers": ("kd_mtl", {"width": 32}, "single"),
}


def rows(count: int, seed: int, wrong: float) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Words (N, 12) and the labels of every task, with a share of them drawn anew."""
    value = torch.randn(WORDS, generator=torch.Generator().manual_seed(0))  # the rule, the same for all seeds
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=random)
    total = value[ids].sum(-1) / LENGTH**0.5
    labels = {"sign": (total > 0).long(), "quarter": torch.bucketize(total, torch.tensor([-0.67, 0.0, 0.67])),
              "large": (total > 0.5).long()}  # fmt: skip
    for name, label in labels.items():
        anew = torch.rand(count, generator=random) < wrong
        labels[name] = torch.where(anew, torch.randint(CLASSES[name], (count,), generator=random), label)
    return ids, labels


def student(tasks: list[Task], method: str, settings: dict, seed: int) -> Learner:
    recipe = {"width": 32, "vocabulary": WORDS, "dropout": 0.1, "target": {"cls": {"labels": 2}},
              "embedding": {"word": {}, "position": {"length": LENGTH}},
              "encoder": {"transformer": {"layers": 1, "heads": 4, "inner": 64}}}  # fmt: skip
    torch.manual_seed(seed)
    heads = {task.name: new_head("cls", 32, {"labels": task.outputs, "pool": "mean"}) for task in tasks}
    return Learner(assemble(recipe), heads, build("distill.tasks", method, tasks, **settings))


def train(model: Learner, data: dict, told: dict, steps: int, seed: int) -> Learner:
    """`steps` steps of 32 rows, each of one task, in proportion to the tasks' rows."""
    names, sizes = list(data), {name: len(ids) for name, (ids, _) in data.items()}
    sampler = TaskSampler(sizes, 1.0, seed)
    model.method.set_total(steps)

    def batches():
        orders = {name: torch.Generator().manual_seed(seed) for name in names}
        left: dict[str, list[int]] = {name: [] for name in names}
        for step in range(steps):
            name, _ = sampler.at(step)
            while len(left[name]) < BATCH:
                left[name] += torch.randperm(sizes[name], generator=orders[name]).tolist()
            places, left[name] = left[name][:BATCH], left[name][BATCH:]
            ids, labels = data[name]
            yield {"ids": ids[places], "mask": torch.ones(BATCH, LENGTH, dtype=torch.bool), "gold": labels[places],
                   "task": torch.tensor(names.index(name)), "step": torch.tensor(step)} | {
                       key: value[places] for key, value in told.get(name, {}).items()
                       if (key == "taught") == ("taught" in model.method.needs)}  # fmt: skip

    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in fit(model.train(), batches(), optimizer, 1.0, scheduler=falling):
        pass
    return model.eval()


def says(model: Learner, name: str, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and features of a task."""
    return answers_of(model.body, model.heads[name], [{"ids": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}])


def accuracy(model: Learner, name: str, ids: torch.Tensor, label: torch.Tensor) -> float:
    said, _ = says(model, name, ids)
    return (said.argmax(-1) == label).float().mean().item()


def compare(smallest: int, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Way -> task -> accuracy on the test rows."""
    sizes = {"sign": 20 * smallest, "quarter": 5 * smallest, "large": smallest}
    data = {}
    for number, (name, size) in enumerate(sizes.items()):
        ids, labels = rows(size, 100 * seed + number, WRONG)
        data[name] = (ids, labels[name])
    ids, labels = rows(TEST, 100 * seed + 99, 0.0)
    known = lambda teachers: [Task(name, CLASSES[name], rows=size, teachers=teachers, widths=(32,) * teachers)
                              for name, size in sizes.items()]  # fmt: skip
    told: dict[str, dict] = {"single": {}, "one": {}, "three": {}}
    found: dict[str, dict[str, float]] = {"single-task": {}}
    for name in sizes:
        own = train(student([Task(name, CLASSES[name])], "mt_dnn", {}, seed), {name: data[name]}, {}, steps, seed)
        found["single-task"][name] = accuracy(own, name, ids, labels[name])
        said, seen = says(own, name, data[name][0])
        told["single"][name] = {"taught": said[:, None], "feature_0": seen}
    joint = [train(student(known(0), "mt_dnn", {}, 1000 + 10 * seed + n), data, {}, steps, 1000 + 10 * seed + n)
             for n in range(3)]  # fmt: skip
    for name in sizes:
        said = torch.stack([says(model, name, data[name][0])[0] for model in joint], 1)
        told["one"][name], told["three"][name] = {"taught": said[:, :1]}, {"taught": said}
    for way, (method, settings, teacher) in WAYS.items():
        tasks = known(3 if teacher == "three" else int(teacher is not None))
        model = train(student(tasks, method, settings, seed), data, told.get(teacher, {}), steps, seed)
        found[way] = {name: accuracy(model, name, ids, labels[name]) for name in sizes}
    return found


def table(found: list[dict], steps: int, smallest: int, seconds: float) -> str:
    plain = [one["plain multi-task"]["large"] for one in found]
    lines = [
        f"{len(found)} seeds, {steps} steps of {BATCH} rows for every model, tasks of {20 * smallest}, {5 * smallest} "
        f"and {smallest} rows, a tenth of the labels wrong, {TEST} clean test rows, {seconds:.0f} s; accuracy in "
        f"percent, mean (standard deviation over seeds).",
        "",
        "| | sign | quarter | large, the smallest | smallest against plain |",
        "|---|---|---|---|---|",
    ]
    for way in found[0]:
        cells = []
        for name in CLASSES:
            values = [100 * one[way][name] for one in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.1f} ({spread:.1f})")
        apart = [100 * (one[way]["large"] - base) for one, base in zip(found, plain, strict=True)]
        better = sum(value > 0 for value in apart)
        cells.append(
            "" if way == "plain multi-task" else f"{statistics.mean(apart):+.1f}, better in {better} of {len(apart)}"
        )
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--smallest", type=int, default=200)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path)
    told = parser.parse_args()
    use_threads()
    began, found = time.monotonic(), []
    for seed in range(1, told.seeds + 1):
        found.append(compare(told.smallest, told.steps, seed))
        print(
            f"seed {seed}: " + ", ".join(f"{way} {100 * each['large']:.1f}" for way, each in found[-1].items()),
            flush=True,
        )
    text = table(found, told.steps, told.smallest, time.monotonic() - began)
    print(text)
    if told.out:
        write_text(told.out, text)


if __name__ == "__main__":
    main()
