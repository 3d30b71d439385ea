"""Does pre-training pay? The same tiny BERT, pre-trained here or not, on labelled sets: accuracy, seeds, cost.

    python benchmarks/pretraining_helps.py CACHE --texts FOLDER --sets FOLDER [FOLDER ...] [--seeds 3] [--out FILE.md]

FOLDER of texts is raw text in any form that tasks/datasets/corpora.py takes; a set is a folder of train and dev files
in any form that tasks/datasets/glue.py takes. For each seed the model is pre-trained once and then tuned on every set;
beside it stands the same model with fresh weights, tuned in the same way. The metric is the best dev accuracy, which
both are chosen by. CACHE, outside the repository, keeps what was made: run once per language, with one folder each.
"""

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.components import pretrained
from models.components._model import assemble
from tasks.datasets import corpora, glue
from tasks.files import read_json, write_text
from tasks.finetune import finetune
from tasks.ingest_text import ingest_text
from tasks.pretrain import pretrain
from tasks.recipes import read_recipe
from tasks.tokenizer import Vocabulary, make_tokenizer
from tasks.tokens import tokens
from tasks.training import use_threads


def main() -> None:
    options = parse()
    use_threads()
    cache = options.cache
    prepare(options, cache)
    for seed in range(options.seeds):
        starts = {"pre-trained": trained(options, cache, seed), "fresh weights": fresh(options, cache, seed)}
        for folder in options.sets:
            for way, start in starts.items():
                tune(options, cache, folder, way, start, seed)
    text = table(options, cache)
    print(text)
    if options.out:
        write_text(options.out, text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="tiny", help="of models/components/recipes/bert.yaml")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=6000, help="of pre-training")
    parser.add_argument("--epochs", type=int, default=4, help="of fine-tuning")
    parser.add_argument("--lr", type=float, default=3e-4, help="of fine-tuning, for both ways")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def prepare(options: argparse.Namespace, cache: Path) -> None:
    """Texts and sets ingested, the tokenizer trained on the texts alone, tokens."""
    if not (cache / "tokens").exists():
        (raw := cache / "raw").mkdir(parents=True, exist_ok=True)
        corpora.fetch(raw, options.texts)
        size = sum(file.stat().st_size for file in raw.rglob("*") if file.is_file())
        ingest_text("documents", corpora.read(raw), size, cache / "ingest")
        make_tokenizer({"kind": "wordpiece", "vocabulary": options.vocabulary}, [cache / "ingest"], cache / "tokenizer")
        tokens(cache / "tokenizer", cache / "ingest", cache / "tokens")
    for folder in options.sets:
        if not (out := cache / "sets" / folder.name).exists():
            ingest_text("examples", glue.read(folder), 1, out)


def trained(options: argparse.Namespace, cache: Path, seed: int) -> Path:
    """A pre-training of this seed."""
    if not (out := cache / f"pretrained-{seed}").exists():
        training = {"steps": options.steps, "batch": 32, "lr": 1e-3, "warmup": 0.1, "seed": seed}
        chosen = {"size": options.size, "data": "texts", "length": options.length, "training": training}
        language = {"pretrain": {"bert": chosen}}
        if not pretrain(language, "bert", cache / "tokens", cache / "tokenizer", out, cache / f"checkpoints-{seed}"):
            sys.exit("stopped; the same command continues")
    return out


def fresh(options: argparse.Namespace, cache: Path, seed: int) -> Path:
    """The same model before its first step."""
    if not (out := cache / f"fresh-{seed}").exists():
        size = Vocabulary.open(cache / "tokenizer").size
        recipe = read_recipe("bert", options.size, None, size)
        torch.manual_seed(seed)
        pretrained.save(assemble(recipe.model), recipe.model, out, recipe.transformers)
        for file in (cache / "tokenizer").iterdir():
            if file.is_file() and file.name != "manifest.json":
                shutil.copy(file, out / file.name)
    return out


def tune(options: argparse.Namespace, cache: Path, folder: Path, way: str, start: Path, seed: int) -> None:
    """Fine-tune, and keep the metrics and the seconds."""
    out = cache / "tuned" / f"{folder.name}-{way.replace(' ', '-')}-{seed}"
    if (out / "metrics.json").exists():
        return
    paired = has(cache / "sets" / folder.name / "rows" / "train.parquet", "second")
    kind = "pairs" if paired else "classification"
    training = {"epochs": options.epochs, "batch": 32, "lr": options.lr, "seed": seed}
    chosen = {"kind": kind, "length": options.length, "training": training}
    began = time.monotonic()
    finetune(out.name, chosen, cache / "sets" / folder.name, start, out, None)
    print(f"{out.name}: {time.monotonic() - began:.0f} s", flush=True)


def has(table: Path, column: str) -> bool:
    """Whether any row of a table has a value there."""
    return pl.scan_parquet(table).select(pl.col(column).is_not_null().any()).collect().item()


def table(options: argparse.Namespace, cache: Path) -> str:
    """One row a set: both ways' mean and spread, the difference of each seed, majority, and what it cost."""
    about = [read_json(cache / f"pretrained-{seed}" / "run.json") for seed in range(options.seeds)]
    lines = [
        f"BERT {options.size}: {about[0]['parameters']:,} parameters, vocabulary {options.vocabulary}, "
        f"{about[0]['tokens']:,} tokens of pre-training in {statistics.mean(a['seconds'] for a in about):,.0f} s "
        f"(mean of {options.seeds} seeds), {torch.get_num_threads()} threads.",
        "",
        "| set | train rows | majority | fresh weights | pre-trained | difference by seed | seconds of tuning |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in options.sets:
        score, seconds = {}, []
        for way in ("fresh weights", "pre-trained"):
            runs = [cache / "tuned" / f"{folder.name}-{way.replace(' ', '-')}-{s}" for s in range(options.seeds)]
            score[way] = [read_json(run / "metrics.json")["dev"]["accuracy"] for run in runs]
            seconds += [read_json(run / "run.json")["seconds"] for run in runs]
        rows = read_json(runs[0] / "run.json")["rows"]["train"]
        apart = [b - a for a, b in zip(*score.values(), strict=True)]
        cells = [
            folder.name,
            f"{rows:,}",
            f"{majority(cache / 'sets' / folder.name):.3f}",
            *map(spread, score.values()),
        ]
        cells += [", ".join(f"{x:+.3f}" for x in apart), f"{statistics.mean(seconds):.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def majority(folder: Path) -> float:
    """Accuracy on dev of always saying its most frequent label."""
    counts = pl.read_parquet(folder / "rows" / "dev.parquet")["label"].value_counts()["count"]
    return counts.max() / counts.sum()


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
