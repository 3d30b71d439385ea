"""Does pre-training pay? The same tiny BERT, pre-trained here or not, on labelled sets: accuracy, seeds, cost.

    python benchmarks/pretraining_helps.py CACHE --texts FOLDER --sets FOLDER [FOLDER ...] [--rows 500 2000 0]

FOLDER of texts is raw text in any form that tasks/datasets/corpora.py takes; a set is a folder of train, dev and
perhaps test files in any form that tasks/datasets/glue.py takes. For each seed the model is pre-trained once; beside it
stands the same model before its first step. Both are tuned in the same way, on the same labelled rows, for the same
number of steps, at each rate of one small grid, and each takes the rate of the best mean dev accuracy over the seeds.
What is compared is the accuracy on test at that rate, or on dev where a set has no labelled test. CACHE, outside the
repository, keeps what was made: run once per language, with one folder each.
"""

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.components import pretrained
from models.components._model import assemble
from tasks.datasets import corpora, glue
from tasks.files import read_json, write_json, write_text
from tasks.finetune import finetune
from tasks.ingest_text import ingest_text
from tasks.pretrain import pretrain
from tasks.recipes import read_recipe
from tasks.tokenizer import Vocabulary, copy_tokenizer, make_tokenizer
from tasks.tokens import tokens
from tasks.training import use_threads

WAYS = ("fresh weights", "pre-trained")
# One of the two losses of BERT: a text is read alone, and a small model that sees each text a few times needs no
# dropout. It comes back in tuning, where few labelled rows are seen often.
OVERRIDES = {"target.sp": None, "dropout": 0.0, "processor": {"mlm": {"share": 0.2}}}
DROPOUT = 0.1
LOOKS = 8  # evaluations on dev in a tuning; the best one's weights are kept


def main() -> None:
    options = parse()
    use_threads()
    prepare(options)
    for seed in range(options.seeds):
        starts = dict(zip(WAYS, (fresh(options, seed), trained(options, seed)), strict=True))
        for folder in options.sets:
            for rows in options.rows:
                for rate in options.rates:
                    for way, start in starts.items():
                        tune(options, folder, rows, rate, way, start, seed)
    text = table(options)
    print(text)
    if options.out:
        write_text(options.out, text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--sets", type=Path, nargs="+", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[0], help="labelled rows to learn from; 0 for all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="tiny", help="of models/components/recipes/bert.yaml")
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--length", type=int, default=64, help="tokens of a row, in pre-training and in tuning")
    parser.add_argument("--steps", type=int, default=5000, help="of pre-training, of 32 rows")
    parser.add_argument("--lr", type=float, default=2e-3, help="of pre-training")
    parser.add_argument("--tuning", type=int, default=800, help="steps of tuning, of 32 rows")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3], help="of tuning: the grid")
    parser.add_argument("--pool", default="mean", help="what the new head reads: first, mean or max")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> None:
    """Texts and sets ingested, the tokenizer trained on the texts alone, tokens; a set's rows for each number."""
    cache = options.cache
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


def begun(options: argparse.Namespace, seed: int) -> Path:
    """Fresh weights whose head knows how often each token occurs: ours, as nothing else then has to learn it.

    Without it the table of words does, in one direction that all words share: 71 % of the table's variance after 3,000
    steps.
    """
    if not (out := options.cache / f"begun-{seed}").exists():
        size = Vocabulary.open(options.cache / "tokenizer").size
        recipe = read_recipe("bert", options.size, OVERRIDES, size)
        torch.manual_seed(seed)
        model = assemble(recipe.model)
        files = sorted((options.cache / "tokens" / "train").rglob("ids.npy"))
        counts = sum(np.bincount(np.load(file), minlength=size) for file in files) + 1
        with torch.no_grad():
            model.targets["mlm"].head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
        pretrained.save(model, recipe.model, out, recipe.transformers)
        copy_tokenizer(options.cache / "tokenizer", out, recipe.model["embedding"])
    return out


def trained(options: argparse.Namespace, seed: int) -> Path:
    """A pre-training of this seed."""
    cache = options.cache
    if not (out := cache / f"pretrained-{seed}").exists():
        training = {"steps": options.steps, "batch": 32, "lr": options.lr, "warmup": 0.04, "betas": [0.9, 0.98],
                    "weight_decay": 0.01, "evaluate_rows": 256, "seed": seed}  # fmt: skip
        chosen = {"size": options.size, "data": "texts", "length": options.length, "overrides": OVERRIDES,
                  "start": str(begun(options, seed)), "training": training}  # fmt: skip
        language = {"pretrain": {"bert": chosen}}
        if not pretrain(language, "bert", cache / "tokens", cache / "tokenizer", out, cache / f"checkpoints-{seed}"):
            sys.exit("stopped; the same command continues")
    drop(out / "model")
    return out


def fresh(options: argparse.Namespace, seed: int) -> Path:
    """The same model before its first step."""
    if not (out := options.cache / f"fresh-{seed}").exists():
        size = Vocabulary.open(options.cache / "tokenizer").size
        recipe = read_recipe("bert", options.size, OVERRIDES, size)
        torch.manual_seed(seed)
        pretrained.save(assemble(recipe.model), recipe.model, out, recipe.transformers)
        copy_tokenizer(options.cache / "tokenizer", out, recipe.model["embedding"])
    drop(out)
    return out


def drop(model: Path) -> None:
    """Tuning has dropout, whatever pre-training had."""
    told = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), DROPOUT)
    write_json(model / "config.json", read_json(model / "config.json") | told)


def labelled(options: argparse.Namespace, folder: Path, rows: int, seed: int) -> Path:
    """The set with so many of its training rows, drawn by the seed: the same ones for both ways."""
    whole = options.cache / "sets" / folder.name
    if not rows:
        return whole
    if not (out := options.cache / "sets" / f"{folder.name}-{rows}-{seed}").exists():
        shutil.copytree(whole, out)
        train = pl.read_parquet(whole / "rows" / "train.parquet")
        train.sample(rows, seed=seed, shuffle=True).write_parquet(out / "rows" / "train.parquet")
    return out


def place(options: argparse.Namespace, folder: Path, rows: int, rate: float, way: str, seed: int) -> Path:
    """Where a tuning is kept."""
    return options.cache / "tuned" / f"{folder.name}-{rows or 'all'}-{rate:g}-{way.replace(' ', '-')}-{seed}"


def tune(options: argparse.Namespace, folder: Path, rows: int, rate: float, way: str, start: Path, seed: int) -> None:
    """Fine-tune, unless it is done."""
    out = place(options, folder, rows, rate, way, seed)
    if (out / "metrics.json").exists():
        return
    data = labelled(options, folder, rows, seed)
    paired = pl.read_parquet(data / "rows" / "train.parquet")["second"].is_not_null().any()
    training = {"steps": options.tuning, "evaluate_steps": max(1, options.tuning // LOOKS), "batch": 32, "lr": rate,
                "seed": seed}  # fmt: skip
    chosen = {"kind": "pairs" if paired else "classification", "length": options.length,
              "head": {"pool": options.pool}, "training": training}  # fmt: skip
    began = time.monotonic()
    finetune(out.name, chosen, data, start, out, None)
    print(f"{out.name}: {time.monotonic() - began:.0f} s", flush=True)


def table(options: argparse.Namespace) -> str:
    """One row a set and number of labelled rows: each way's rate and accuracies, their difference, what it cost."""
    about = [read_json(options.cache / f"pretrained-{seed}" / "run.json") for seed in range(options.seeds)]
    loss = [read_json(options.cache / f"pretrained-{seed}" / "metrics.json")["heldout"] for seed in range(len(about))]
    lines = [
        f"BERT {options.size}: {about[0]['parameters']:,} parameters, vocabulary "
        f"{Vocabulary.open(options.cache / 'tokenizer').size:,}, {about[0]['tokens']:,} tokens of pre-training in "
        f"{statistics.mean(a['seconds'] for a in about):,.0f} s a seed, held-out loss of a hidden word "
        f"{statistics.mean(found['mlm'] for found in loss):.2f}; {torch.get_num_threads()} thread(s), "
        f"{options.seeds} seeds.",
        "",
        "| set | labelled rows | majority | judged on | fresh weights (rate) | pre-trained (rate) | difference by seed "
        "| mean | dev: fresh, pre-trained | seconds a tuning |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for folder in options.sets:
        for rows in options.rows:
            lines.append(f"| {' | '.join(row(options, folder, rows))} |")
    return "\n".join(lines) + "\n"


def row(options: argparse.Namespace, folder: Path, rows: int) -> list[str]:
    """The cells of one set at one number of labelled rows."""
    seeds, picked, dev, judged, seconds = range(options.seeds), {}, {}, {}, []
    for way in WAYS:
        runs = {rate: [place(options, folder, rows, rate, way, seed) for seed in seeds] for rate in options.rates}
        found = {rate: [read_json(run / "metrics.json") for run in of] for rate, of in runs.items()}
        means = {rate: statistics.mean(each["dev"]["accuracy"] for each in of) for rate, of in found.items()}
        picked[way] = max(means, key=means.get)
        dev[way] = [each["dev"]["accuracy"] for each in found[picked[way]]]
        part = "test" if "test" in found[picked[way]][0] else "dev"
        judged[way] = [each[part]["accuracy"] for each in found[picked[way]]]
        seconds += [read_json(run / "run.json")["seconds"] for run in runs[picked[way]]]
    apart = [b - a for a, b in zip(*judged.values(), strict=True)]
    labels = pl.read_parquet(options.cache / "sets" / folder.name / "rows" / f"{part}.parquet")["label"]
    learned = read_json(runs[picked[way]][0] / "run.json")["rows"]["train"]
    return [
        folder.name,
        f"{learned:,}",
        f"{labels.value_counts()['count'].max() / len(labels):.3f}",
        f"{part}, {len(labels):,}",
        *(f"{spread(judged[way])} ({picked[way]:g})" for way in WAYS),
        ", ".join(f"{x:+.3f}" for x in apart),
        f"{statistics.mean(apart):+.3f}",
        ", ".join(f"{statistics.mean(dev[way]):.3f}" for way in WAYS),
        f"{statistics.mean(seconds):.0f}",
    ]


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0:.3f}"


if __name__ == "__main__":
    main()
