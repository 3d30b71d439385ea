"""Does a moving mixture pay? A small English model carried to Chinese by three samplers, and by two kinds of new rows.

    python benchmarks/chatflow.py CACHE --english FOLDER ... --chinese FOLDER ... --pairs FOLDER ... --told FOLDER ...

FOLDER is raw text in any form that tasks/datasets/{corpora,parallel,instructions}.py takes. Once: ingestion, a
byte-level tokenizer and a model trained on the English alone, and its vocabulary extended by the Chinese characters.
Then for each seed a continued pre-training under each sampler (chatflow, two_stage, static) from mean-of-pieces rows,
and one under chatflow from random rows. All have equal budgets, settings and rows for evaluation, and by their paths
read equally many tokens of each source, in another order. CACHE, outside the repository, keeps what was made: each run
goes on where it was stopped, and a second call only does what is missing. `--plan` says what it would cost, from one
timed step.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.language._causal import Causal
from tasks import plots
from tasks.base import load_causal
from tasks.continue_pretraining import continue_pretraining
from tasks.datasets import corpora, instructions, parallel
from tasks.evaluate_language import evaluate_language
from tasks.extend_vocabulary import extend_vocabulary
from tasks.files import new_folder, read_json, write_text
from tasks.ingest_text import ingest_text
from tasks.tokenizer import Vocabulary, make_tokenizer
from tasks.training import use_threads

SETS = {"english": (corpora, "documents", "en"), "chinese": (corpora, "documents", "zh"),
        "pairs": (parallel, "pairs", None), "told": (instructions, "instructions", None)}  # fmt: skip
SOURCES = {
    "en": {"data": "english", "kind": "text", "language": "en"},
    "zh": {"data": "chinese", "kind": "text", "language": "zh"},
    "parallel": {"data": "pairs", "kind": "parallel"},
    "sft": {"data": "told", "kind": "sft"},
}
ARMS = {  # name -> sampler's preset, rows
    "dynamic": ("chatflow", "mean"),
    "two_stage": ("two_stage", "mean"),
    "static": ("static", "mean"),
    "dynamic, random rows": ("chatflow", "random"),
}
JUDGE = "two_stage"  # whose last loss the others must reach


def main() -> None:
    options = parse()
    use_threads()
    prepare(options)
    if options.plan:
        print(plan(options))
        return
    for seed in range(options.seeds):
        for arm in options.arms:
            carried(options, arm, seed)
            judged(options, arm, seed)
    text = table(options)
    print(text)
    if options.out:
        write_text(options.out, text)
        for name in ("en", "zh"):
            options.out.with_name(f"{options.out.stem}_{name}.png").write_bytes(picture(options, name))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    for name in SETS:
        parser.add_argument(f"--{name}", type=Path, nargs="+", required=True, help=f"folders of raw {SETS[name][1]}")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--characters", type=int, default=3000)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--begin", type=int, default=400, help="steps of the English model")
    parser.add_argument("--steps", type=int, default=200, help="steps of each run")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"), help="of all runs alike")
    parser.add_argument("--looks", type=int, default=20, help="evaluations on held-out rows in a run")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> None:
    """Ingested data, the English model, and its two extensions."""
    for name, (module, kind, language) in SETS.items():
        if not (out := options.cache / "ingest" / name).exists():
            (raw := options.cache / "raw" / name).mkdir(parents=True, exist_ok=True)
            for folder in getattr(options, name):
                (place := raw / folder.name).mkdir(exist_ok=True)
                module.fetch(place, folder, **({"language": language} if language else {}))
            size = sum(file.stat().st_size for file in raw.rglob("*") if file.is_file())
            frames = [module.read(place) for place in sorted(raw.iterdir())]
            ingest_text(kind, pl.concat(frames), size, out)
    if not (options.cache / "tokenizer").exists():
        make_tokenizer({"kind": "bpe", "vocabulary": options.vocabulary}, [options.cache / "ingest" / "english"],
                       options.cache / "tokenizer")  # fmt: skip
    if not (options.cache / "untrained").exists():
        untrained(options)
    if options.plan:
        return
    if not (options.cache / "base").exists():
        entry = {"sources": {"en": SOURCES["en"]}, "sampler": {"temperature": 1.0}, "length": options.length,
                 "training": training(options, 0) | {"steps": options.begin}}  # fmt: skip
        run(options, "base", options.cache / "untrained", entry)
    for rows in ("mean", "random"):
        if not (out := options.cache / f"extended-{rows}").exists():
            chosen = {"language": "zh", "characters": options.characters, "rows": rows}
            found = extend_vocabulary(chosen, options.cache / "base", [options.cache / "ingest" / "chinese"], out)
            rate = found["tokens_per_character"]
            print(f"{rows} rows: {rate['before']:.2f} -> {rate['after']:.2f} tokens per Chinese character")


def untrained(options: argparse.Namespace) -> None:
    """A LLaMA-shaped model before its first step, with the English tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = Vocabulary.open(options.cache / "tokenizer")
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=words.size, hidden_size=options.width, intermediate_size=options.width * 8 // 3,
                         num_hidden_layers=options.layers, num_attention_heads=max(1, options.width // 64),
                         max_position_embeddings=options.length, tie_word_embeddings=True, bos_token_id=words.bos,
                         eos_token_id=words.eos, pad_token_id=words.pad)  # fmt: skip
    with new_folder(options.cache / "untrained") as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        AutoTokenizer.from_pretrained(options.cache / "tokenizer").save_pretrained(folder)


def training(options: argparse.Namespace, seed: int) -> dict:
    return {"steps": options.steps, "batch": options.batch, "lr": options.lr, "warmup": 0.05, "seed": seed,
            "evaluate_steps": max(1, options.steps // options.looks), "evaluate_rows": 64,
            "checkpoint_steps": 50, "precision": options.precision}  # fmt: skip


def run(options: argparse.Namespace, name: str, base: Path, entry: dict) -> None:
    out = options.cache / name
    ingest, doing, tokens = options.cache / "ingest", out.with_suffix(".doing"), options.cache / "tokens"
    if not continue_pretraining({name: entry}, name, base, ingest, out, doing, tokens):
        sys.exit("stopped; the same command continues")


def carried(options: argparse.Namespace, arm: str, seed: int) -> None:
    """One run, unless it was made."""
    if not folder_of(options, arm, seed).exists():
        preset, rows = ARMS[arm]
        sampler = {"preset": preset, "unit": "tokens", "grow": options.steps * options.batch * options.length}
        entry = {"sources": SOURCES, "sampler": sampler, "length": options.length, "training": training(options, seed)}
        run(options, folder_of(options, arm, seed).name, options.cache / f"extended-{rows}", entry)


def judged(options: argparse.Namespace, arm: str, seed: int) -> dict:
    """Perplexities per character, forgetting and retrieval, against the English model."""
    made = folder_of(options, arm, seed)
    if not (out := made.with_suffix(".judged")).exists():
        asked = {"texts": {"en": {"data": "english", "characters": 60_000},
                           "zh": {"data": "chinese", "characters": 60_000}},
                 "pairs": {"both": {"data": "pairs", "sentences": 500}}, "length": options.length}  # fmt: skip
        evaluate_language(asked, options.cache / "base", made, options.cache / "ingest", out)
    return read_json(out / "metrics.json")["evaluation"]


def folder_of(options: argparse.Namespace, arm: str, seed: int) -> Path:
    return options.cache / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"


def curve_of(options: argparse.Namespace, arm: str, seed: int) -> pl.DataFrame:
    return pl.read_csv(folder_of(options, arm, seed) / "curve.csv", infer_schema_length=None)


def reached(options: argparse.Namespace, arm: str, seed: int, source: str) -> float | None:
    """Share of the budget after which a run's held-out loss is the judge's last one or lower; None for never."""
    column = f"heldout_loss_{source}"
    target = curve_of(options, JUDGE, seed)[column][-1]
    there = curve_of(options, arm, seed).filter(pl.col(column) <= target)
    return there["step"][0] / options.steps if len(there) else None


def table(options: argparse.Namespace) -> str:
    """Means over the seeds, and the standard deviation where there are several."""
    seeds = range(options.seeds)
    lines = [f"{options.seeds} seeds; {options.steps} steps of {options.batch} rows of {options.length} tokens each, "
             f"after {options.begin} on English; perplexities are per character. Steps to target: share of the run "
             f"after which the held-out loss is that at the end of two_stage with the same seed", "",
             "| arm | English perplexity | rise over the base | Chinese perplexity | retrieval@1 | steps to English "
             "target | steps to Chinese target |", "|---|---|---|---|---|---|---|"]  # fmt: skip
    for arm in options.arms:
        found = [judged(options, arm, seed) for seed in seeds]
        cells = [told([one[key] for one in found], form) for key, form in (
            ("character_perplexity_en", "{:.3f}"), ("forgetting_en", "{:+.1%}"), ("character_perplexity_zh", "{:.2f}"),
            ("retrieval", "{:.1%}"))]  # fmt: skip
        if JUDGE in options.arms:
            for source in ("en", "zh"):
                shares = [reached(options, arm, seed, source) for seed in seeds]
                got = [share for share in shares if share is not None]
                never = [f"never in {len(shares) - len(got)}"] if len(got) < len(shares) else []
                cells.append(", ".join(([told(got, "{:.0%}")] if got else []) + never))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    base = found[0]
    lines.append(f"| English model | {base['base_character_perplexity_en']:.3f} | | "
                 f"{base['base_character_perplexity_zh']:.2f} | {base['base_retrieval']:.1%} | | |")  # fmt: skip
    return "\n".join(lines) + "\n"


def told(values: list[float], form: str) -> str:
    spread = f" ± {form.format(stdev(values)).lstrip('+')}" if len(values) > 1 else ""
    return form.format(mean(values)) + spread


def picture(options: argparse.Namespace, source: str) -> bytes:
    """Held-out loss of a language over the steps: the mean of the seeds."""
    columns = {arm: [curve_of(options, arm, seed)[f"heldout_loss_{source}"].to_list() for seed in range(options.seeds)]
               for arm in options.arms}  # fmt: skip
    steps = curve_of(options, options.arms[0], 0)["step"].to_list()
    return plots.curves([{"step": step} | {f"{arm}: loss of {source}": mean(run[place] for run in runs)
                                           for arm, runs in columns.items()}
                         for place, step in enumerate(steps)])  # fmt: skip


def plan(options: argparse.Namespace) -> str:
    """Runs, tokens and hours, from the median of three timed steps."""
    model = Causal(load_causal(options.cache / "untrained"))
    optimizer, spent = torch.optim.AdamW(model.parameters(), fused=True), []
    ids = torch.randint(0, 1000, (options.batch, options.length))
    for _ in range(4):
        began = time.perf_counter(), time.process_time()
        model(ids=ids, labels_lm=ids)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        spent.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    one, cpu = (sorted(times)[1] for times in zip(*spent[1:], strict=True))
    steps = options.begin + options.seeds * len(options.arms) * options.steps
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return (f"{parameters / 1e6:.1f}M parameters before the extension; {options.seeds * len(options.arms)} runs after "
            f"the English one, {steps:,} steps, {steps * options.batch * options.length:,} tokens; {one:.2f} s a step "
            f"on {torch.get_num_threads()} threads, {cpu:.2f} s of CPU: {steps * one / 3600:.1f} hours as it is now, "
            f"{steps * cpu / 60:.0f} CPU minutes, and the evaluations")  # fmt: skip


if __name__ == "__main__":
    main()
