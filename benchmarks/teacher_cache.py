"""What does a step cost with a live teacher, with its signals read from disk, and with no teacher at all?

    python benchmarks/teacher_cache.py [--rows 16] [--length 128] [--steps 7] [--methods kd pkd minilm distilbert]

A teacher of 6 layers x 384 and a student of 3, one thread, CPU seconds of forward, backward and the reading of rows,
the three ways in turn in one process. "Without" is the same step whose teacher's signals lie in memory already: what is
left when a teacher costs nothing. The share that is left = (kept - without) / (live - without); 0 is best.
"""

import argparse
import statistics
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import build
from models.components._model import assemble
from models.distill._distillation import Distillation
from models.distill._kept import Kept, wanted_by
from models.distill._objective import Objective
from models.distill._student import new_student, shape_of, student_recipe
from tasks.ask_teacher import fill
from tasks.teacher_cache import Taught

WORDS, FACTS = 30522, {"teacher": "made up", "tokenizer": "made up"}
WAYS = ("live", "kept", "without")


class MadeUp:
    """Random rows, the same for each number."""

    fingerprint = "made up"

    def __init__(self, count: int, length: int):
        draw = torch.Generator().manual_seed(0)
        self.ids = torch.randint(1, WORDS, (count, length), generator=draw)
        self.lengths = torch.randint(length // 2, length + 1, (count,), generator=draw)
        self.labels = torch.randint(3, (count,), generator=draw)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, indices) -> dict[str, torch.Tensor]:
        at = torch.tensor([index % len(self) for index in indices])
        mask = torch.arange(self.ids.shape[1]) < self.lengths[at, None]
        labels = torch.where(mask & (self.ids[at] % 7 == 0), self.ids[at], -100)
        return {"ids": self.ids[at], "mask": mask, "labels_cls": self.labels[at], "labels_mlm": labels}


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(f"{options.rows} x {options.length} tokens, CPU seconds a step, median of {options.steps}\n\n"
          "| method | live | kept | without | live / kept | kept / without | teacher's share left | bytes a token |\n"
          "|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in options.methods:
        with TemporaryDirectory() as folder:
            seconds, size = measure(options, name, Path(folder))
        live, kept, without = (statistics.median(seconds[way]) for way in WAYS)
        turns = zip(*(seconds[way] for way in WAYS), strict=True)
        left = statistics.median((kept - bare) / (whole - bare) for whole, kept, bare in turns)
        print(f"| `{name}` | {live:.3f} | {kept:.3f} | {without:.3f} | {live / kept:.2f} | {kept / without:.3f} | "
              f"{left:+.1%} | {size:,.1f} |", flush=True)  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"rows": 16, "length": 128, "steps": 7, "words": 64}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--methods", nargs="+", default=["kd", "pkd", "minilm", "tinybert", "distilbert"])
    return parser.parse_args()


def measure(options: argparse.Namespace, name: str, folder: Path) -> tuple[dict[str, list[float]], float]:
    """CPU seconds of each step by way, and bytes of the cache by token."""
    target = {"mlm": {}} if name == "distilbert" else {"cls": {"labels": 3}}
    encoder = {"transformer": {"layers": 6, "heads": 12, "inner": 1536}}
    recipe = {"width": 384, "vocabulary": WORDS, "dropout": 0.1, "embedding": {"word": {}, "position": {"length": 512}},
              "encoder": encoder, "target": target, "tie": "mlm" in target}  # fmt: skip
    torch.manual_seed(0)
    teacher, small = assemble(recipe), student_recipe(recipe, 3)
    method = build("distill", name, shape_of(small), shape_of(recipe))
    objective = Objective({name: method})
    student = new_student(small, "cut", teacher.state_dict())
    kept = Kept.of(
        wanted_by(objective, 1), teacher, words=options.words, temperature=getattr(method, "temperature", 1.0)
    )
    rows = MadeUp(options.rows * (options.steps + 1), options.length)
    with redirect_stdout(sys.stderr):
        cache = fill(folder / "cache", teacher.eval(), rows, kept, FACTS, batch=options.rows, shard=4 * options.rows)
    taught = Taught(rows, cache)
    live, away = Distillation(student, teacher, objective), Distillation(student, None, objective, kept)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for step in range(options.steps + 1):
        numbers = range(step * options.rows, (step + 1) * options.rows)
        before = taught.rows(numbers)  # also what makes the file's pages known, as reading ahead does
        for way in WAYS:
            torch.manual_seed(step)
            start = time.process_time()
            batch = rows.rows(numbers) if way == "live" else taught.rows(numbers) if way == "kept" else before
            loss, _ = (live if way == "live" else away).train()(**batch)
            loss.backward()
            seconds[way].append(time.process_time() - start)
            live.zero_grad()
    size = sum(file.stat().st_size for file in cache.folder.glob("shard-*")) / int(rows.lengths.sum())
    return {way: found[1:] for way, found in seconds.items()}, size  # the first step allocates


if __name__ == "__main__":
    main()
