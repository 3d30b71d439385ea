"""Which method keeps most of a teacher? All of them on the same teacher, student, budget and rows.

    python benchmarks/distillation.py TEACHER DATA OUT [--layers 3] [--steps 300] [--seeds 3] [--methods kd pkd ...]

TEACHER is a folder of tasks/finetune.py with DATA its ingested rows, or of tasks/pretrain.py with DATA its tokens. OUT,
outside the repository, takes a folder for each run, table.md and plot.png; runs that are there are not done again. A
method with several stages shares its steps among them. What a method cannot do here is told, and holds up no other.
"""

import argparse
import statistics
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import names
from tasks.distill import GOLD, distill, stages_of
from tasks.files import read_json, write_text
from tasks.training import use_threads


def main() -> None:
    options = parse()
    use_threads()
    told = yaml.safe_load(options.settings.read_text()) if options.settings else {}
    found, refused = {}, {}
    for name in options.methods:
        try:
            found[name] = [run(options, name, seed, told.get(name) or {}) for seed in range(options.seeds)]
        except (ValueError, LookupError, TypeError) as error:
            refused[name] = str(error)
    text = table(found, refused, options)
    write_text(options.out / "table.md", text)
    print(text)
    if found:
        (options.out / "plot.png").write_bytes(plot(found))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--start", default="cut", choices=("cut", "random"))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=[GOLD, *names("distill")], help=f"{GOLD}: labels alone")
    parser.add_argument("--settings", type=Path, help="YAML: method -> its settings, where the paper's cannot be")
    return parser.parse_args()


def run(options: argparse.Namespace, name: str, seed: int, settings: dict) -> dict:
    """One student: its metrics, and the run's facts."""
    folder = options.out / f"{name}-{seed}"
    if not (folder / "metrics.json").is_file():
        student = {"layers": options.layers, "start": options.start}
        chosen = {"student": student | ({"width": options.width} if options.width else {}), "length": options.length}
        training = {"batch": options.batch, "lr": options.lr, "seed": seed + 1}
        # Labels alone are the last stage of a method that has nothing else to do.
        name, entry = ("kd", {"stages": [GOLD]}) if name == GOLD else (name, dict(settings))
        chosen |= {"training": training, "methods": {name: entry}}
        count = len(stages_of(chosen, name, options.teacher, options.data))
        training["steps"] = max(1, options.steps // count)
        distill(chosen, "methods", name, options.teacher, options.data, folder, None)
    return read_json(folder / "metrics.json") | {"run": read_json(folder / "run.json")}


def table(found: dict, refused: dict, options: argparse.Namespace) -> str:
    """A row for each method, the best first: means over seeds, and the deviation of what is kept."""
    lines = [f"Students of {options.layers} layers after {options.steps} steps of {options.batch} rows, "
             f"{options.seeds} seeds; teacher and students on the same dev rows.", "",
             "| method | stages | kept | ± | loss | parameters | ms a row | seconds |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    mean = lambda runs, key: statistics.mean(key(one) for one in runs)
    for name, runs in sorted(found.items(), key=lambda pair: -mean(pair[1], lambda one: one["kept"] or 0.0)):
        kept = [one["kept"] or 0.0 for one in runs]
        spread = statistics.stdev(kept) if len(kept) > 1 else 0.0
        stages = " → ".join(runs[0]["run"]["stages"])
        lines.append(f"| `{name}` | {stages} | {statistics.mean(kept):.3f} | {spread:.3f} | "
                     f"{mean(runs, lambda one: one['dev']['loss']):.3f} | {runs[0]['run']['parameters']:,} | "
                     f"{mean(runs, lambda one: one['latency_ms']['student']):.2f} | "
                     f"{mean(runs, lambda one: one['run']['seconds']):.1f} |")  # fmt: skip
    if found:
        one = next(iter(found.values()))[0]
        lines.append(f"| teacher | | 1 | | {one['teacher']['loss']:.3f} | {one['run']['teacher_parameters']:,} | "
                     f"{one['latency_ms']['teacher']:.2f} | |")  # fmt: skip
    lines += ["", *(f"- `{name}` did not run: {why}" for name, why in sorted(refused.items()))]
    return "\n".join(lines).rstrip() + "\n"


def plot(found: dict) -> bytes:
    """Quality against parameters, and against latency."""
    from io import BytesIO

    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    one = next(iter(found.values()))[0]
    size, time = lambda run: run["run"]["parameters"], lambda run: run["latency_ms"]["student"]
    sides = (("parameters", size, one["run"]["teacher_parameters"]),
             ("milliseconds a row", time, one["latency_ms"]["teacher"]))  # fmt: skip
    for axes, (name, read, teacher) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
        for method_name, runs in found.items():
            x, y = statistics.mean(map(read, runs)), statistics.mean(run["kept"] or 0.0 for run in runs)
            axes.plot(x, y, "o", markersize=4)
            axes.annotate(method_name, (x, y), fontsize=7, xytext=(4, 0), textcoords="offset points")
        axes.plot(teacher, 1.0, "k*", label="teacher")
        axes.set(xlabel=name, ylabel="share of the teacher kept")
        axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
