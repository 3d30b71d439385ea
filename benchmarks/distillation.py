"""Which method keeps most of a teacher? All of them, and all ways of combining two, on one student, budget and rows.

    python benchmarks/distillation.py TEACHER DATA OUT [--second FOLDER] [--layers 3] [--steps 300] [--seeds 3] ...

TEACHER is a folder of tasks/finetune.py with DATA its ingested rows, or of tasks/pretrain.py with DATA its tokens. OUT,
outside the repository, takes a folder for each run, without its weights, table.md and plot.png; runs that are there are
not done again, so that a table that was broken off goes on. A method with several stages shares its steps among them.
With --second, a smaller teacher of the same rows, combiners read both; TAKD is a chain: an assistant of middle depth is
taught first, and teaches. With --text, a pre-trained teacher of the same tokenizer and its tokens, methods that were
published for running text spend half of their steps there, and half on the task's labels. What a method cannot do on
such data is told below the table, and holds up no other.
"""

import argparse
import shutil
import statistics
import sys
from io import BytesIO
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from models import names
from tasks.distill import GOLD, distill, planned
from tasks.files import read_json, write_text
from tasks.settings import SettingsError
from tasks.training import use_threads

TAKD = "takd"
ON_TEXT = ("diito", "distilbert")  # ask for logits of words; the task comes after them, with its labels alone
OWN_LOOP = ("wid", "on_policy", "minillm", "distillm")  # of running text alone
KINDS = {"labels alone": "0.35", "one teacher": "tab:blue", "several teachers": "tab:orange", "a chain": "tab:green"}


def main() -> None:
    options = parse()
    use_threads()
    told = yaml.safe_load(options.settings.read_text()) if options.settings else {}
    found, refused = {}, {}
    for name in options.methods or everything(options):
        try:
            found[name] = [run(options, name, seed, told.get(name) or {}) for seed in range(options.seeds)]
        except (ValueError, LookupError, TypeError) as error:
            refused[name] = str(error)
        if found:  # a long run is worth looking at before its end
            write_text(options.out / "table.md", table(found, refused, options))
            (options.out / "plot.png").write_bytes(plot(found))
    print(table(found, refused, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--second", type=Path, help="a smaller teacher of the same classes and tokenizer")
    parser.add_argument("--text", type=Path, nargs=2, metavar=("TEACHER", "TOKENS"), help="of the same tokenizer")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--start", nargs="+", default=["cut"], help="cut, random, or numbers of the teacher's layers")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--length", type=int, default=None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--methods", nargs="+", default=None, help=f"{GOLD}: labels alone; {TAKD}; all by default")
    parser.add_argument("--settings", type=Path, help="YAML: method -> its settings, where the paper's cannot be")
    return parser.parse_args()


def everything(options: argparse.Namespace) -> list[str]:
    """Labels alone, every method, and with a second teacher every combiner and a chain."""
    labelled = on_rows(options)
    alone = [name for name in names("distill") if not labelled or name not in OWN_LOOP]
    return [*([GOLD] if labelled else []), *alone, *([*names("distill.teachers"), TAKD] if options.second else [])]


def run(options: argparse.Namespace, name: str, seed: int, settings: dict) -> dict:
    """One student: its metrics, and the run's facts."""
    folder = options.out / f"{name}-{seed}"
    if not (folder / "metrics.json").is_file():
        part, entry, teacher, begun = entry_of(options, name, seed, dict(settings))
        chosen = chosen_of(options, seed) | {part: {name: entry}}
        count = len(planned(chosen, part, name, teacher, options.data, begun).stages) + (begun is not None)
        chosen["training"]["steps"] = max(1, options.steps // count)
        distill(chosen, part, name, teacher, options.data, folder, None, start=begun)
        shutil.rmtree(folder / "model")
        if begun is not None:
            shutil.rmtree(begun)
    found = read_json(folder / "metrics.json") | {"run": read_json(folder / "run.json")}
    if name == TAKD and found["kept"] is not None:  # so far of the assistant, which taught it
        found["kept"] *= read_json(options.out / f"assistant-{seed}" / "metrics.json")["kept"] or 0.0
    return found


def chosen_of(options: argparse.Namespace, seed: int, **student) -> dict:
    """What all students of a seed have in common; `student` changes its shape."""
    start = [int(word) for word in options.start] if options.start[0].isdigit() else options.start[0]
    shape = {"layers": options.layers, "start": start} | ({"width": options.width} if options.width else {})
    training = {"batch": options.batch, "lr": options.lr, "seed": seed + 1, "precision": options.precision,
                "steps": options.steps}  # fmt: skip
    return {"student": student or shape, "length": options.length, "training": training}


def on_text(options: argparse.Namespace, name: str, seed: int, settings: dict) -> Path:
    """The folder of a student that half of the steps taught on running text."""
    if options.text is None:
        raise SettingsError("it asks for logits of words, and rows have classes; give --text")
    (teacher, tokens), folder = options.text, options.out / f"{name}-{seed}-text"
    if not (folder / "metrics.json").is_file():
        chosen = chosen_of(options, seed) | {"methods": {name: settings}}
        steps = max(1, options.steps // 2)
        # Its words are judged once: what counts is what the task makes of it.
        chosen["training"] |= {"steps": steps, "evaluate_steps": steps, "evaluate_rows": 64}
        distill(chosen, "methods", name, teacher, tokens, folder, None)
    return folder


def on_rows(options: argparse.Namespace) -> bool:
    """Whether the data are rows with labels, not running text."""
    return (options.data / "rows").is_dir()


def entry_of(
    options: argparse.Namespace, name: str, seed: int, settings: dict
) -> tuple[str, dict, Path | list[Path], Path | None]:
    """The part of params.yaml, the entry, the teachers and the trained start that a name of the table stands for."""
    if name in ON_TEXT and on_rows(options):  # the task's labels alone
        return "specific", {}, options.teacher, on_text(options, name, seed, settings)
    if name == GOLD:  # the last stage of a method that has nothing else to do
        return "mixes", {"kd": {}, "stages": [GOLD]}, options.teacher, None
    if name in names("distill.teachers"):
        if options.second is None:
            raise SettingsError("it combines teachers; give --second")
        return (
            "several",
            {"teachers": ["second", "first"], "by": {name: settings}},
            [options.second, options.teacher],
            None,
        )
    if name == TAKD:
        assistant = options.out / f"assistant-{seed}"
        if not (assistant / "metrics.json").is_file():
            middle = (read_layers(options.teacher) + options.layers + 1) // 2
            chosen = chosen_of(options, seed, layers=middle)
            distill(chosen | {"methods": {"kd": {}}}, "methods", "kd", options.teacher, options.data, assistant, None)
        return "chains", {"of": {"kd": settings}}, assistant, None
    return "methods", settings, options.teacher, None


def read_layers(teacher: Path) -> int:
    return read_json(teacher / "recipe.json")["model"]["encoder"]["transformer"]["layers"]


def kind_of(name: str) -> str:
    """A key of KINDS."""
    if name == GOLD:
        return "labels alone"
    return "several teachers" if name in names("distill.teachers") else "a chain" if name == TAKD else "one teacher"


def mean(runs: list[dict], read) -> float:
    return statistics.mean(read(one) for one in runs)


def taught_by_teacher(found: dict) -> dict:
    """A run that says what the teacher is like; TAKD's tells of its assistant, as long as there is another."""
    return found[next((name for name in found if name != TAKD), TAKD)][0]


def quality(run: dict) -> float:
    """The share of the teacher that is kept; of a teacher that is right about nothing there is none."""
    return run["kept"] or 0.0


def table(found: dict, refused: dict, options: argparse.Namespace) -> str:
    """A row for each method, the best first: means over seeds, and the deviation of what is kept."""
    lines = [f"Students of {options.layers} layers after {options.steps} steps of {options.batch} rows, "
             f"{options.seeds} seeds; teacher and students on the same dev rows.", "",
             "| method | teachers | stages | kept | ± | loss | parameters | ms a row | seconds |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, runs in sorted(found.items(), key=lambda pair: -mean(pair[1], quality)):
        kept = [quality(one) for one in runs]
        spread = statistics.stdev(kept) if len(kept) > 1 else 0.0
        stages = " → ".join([f"{name} on text"] * ("start" in runs[0]["run"]) + runs[0]["run"]["stages"])
        lines.append(f"| `{name}` | {kind_of(name)} | {stages} | {statistics.mean(kept):.3f} | {spread:.3f} | "
                     f"{mean(runs, lambda one: one['dev']['loss']):.3f} | {runs[0]['run']['parameters']:,} | "
                     f"{mean(runs, lambda one: one['latency_ms']['student']):.2f} | "
                     f"{mean(runs, lambda one: one['run']['seconds']):.1f} |")  # fmt: skip
    if found:
        one = taught_by_teacher(found)
        lines.append(f"| teacher | | | 1 | | {one['teacher']['loss']:.3f} | {one['run']['teacher_parameters']:,} | "
                     f"{one['latency_ms']['teacher']:.2f} | |")  # fmt: skip
    lines += ["", *(f"- `{name}` did not run: {why}" for name, why in sorted(refused.items()))]
    return "\n".join(lines).rstrip() + "\n"


def plot(found: dict) -> bytes:
    """What each method keeps, with its seeds; and the best and the labels alone against parameters and latency."""
    from matplotlib.figure import Figure

    order = sorted(found, key=lambda name: mean(found[name], quality))
    figure = Figure(figsize=(13, max(4.0, 0.26 * len(order) + 1.4)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _dots(left, order, found)
    _sizes(right, order, found)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _dots(axes, order: list[str], found: dict) -> None:
    """One row a method: the mean as a dot, seeds as strokes on the line between the lowest and the highest."""
    for place, name in enumerate(order):
        kept, color = [quality(one) for one in found[name]], KINDS[kind_of(name)]
        axes.plot([min(kept), max(kept)], [place, place], color=color, linewidth=2, alpha=0.5)
        axes.plot(kept, [place] * len(kept), "|", color=color, markersize=9)
        axes.plot(statistics.mean(kept), place, "o", color=color, markersize=6)
    axes.axvline(1.0, color="black", linewidth=1, linestyle="--")
    axes.annotate(
        "teacher", (1.0, len(order) - 0.4), fontsize=8, ha="right", xytext=(-3, 0), textcoords="offset points"
    )
    axes.set(yticks=range(len(order)), yticklabels=order, ylim=(-0.6, len(order) + 0.1),
             xlabel="share of the teacher's metric kept: mean (dot), seeds (strokes)")  # fmt: skip
    axes.tick_params(axis="y", labelsize=8)
    axes.grid(axis="both", alpha=0.3)


def _sizes(axes, order: list[str], found: dict) -> None:
    """Quality against parameters, with the latency as the size of a mark; equal students share a place."""
    teacher = taught_by_teacher(found)
    times = {name: mean(found[name], lambda one: one["latency_ms"]["student"]) for name in order}
    most = max(*times.values(), teacher["latency_ms"]["teacher"])
    area = lambda milliseconds: 30 + 350 * milliseconds / most
    seen = set()
    for name in order:
        kind, runs = kind_of(name), found[name]
        label = None if kind in seen else kind
        seen.add(kind)
        axes.scatter(mean(runs, lambda one: one["run"]["parameters"]), mean(runs, quality), area(times[name]),
                     color=KINDS[kind], alpha=0.45, edgecolors="black", linewidths=0.4, label=label)  # fmt: skip
    count, time = teacher["run"]["teacher_parameters"], teacher["latency_ms"]["teacher"]
    axes.scatter(count, 1.0, area(time), color="black", marker="*", label="teacher")
    axes.annotate(f"{count:,}\n{time:.1f} ms a row", (count, 1.0), fontsize=8, xytext=(-8, -16), ha="right",
                  textcoords="offset points", va="top")  # fmt: skip
    best = order[-1]
    at = mean(found[best], lambda one: one["run"]["parameters"]), mean(found[best], quality)
    axes.annotate(f"{best}\n{at[0]:,.0f}\n{times[best]:.1f} ms a row", at, fontsize=8, xytext=(12, 0), va="center",
                  textcoords="offset points")  # fmt: skip
    axes.margins(0.2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="x", labelsize=8)
    axes.set(xlabel="parameters (area of a mark: milliseconds a row)", ylabel="share of the teacher's metric kept")
    axes.grid(alpha=0.3)
    for handle in axes.legend(fontsize=8, loc="lower right").legend_handles:
        handle.set_sizes([40])


if __name__ == "__main__":
    main()
