"""What does the moving mixture cost, and how closely is it followed? Share of a training step; largest |n - A|.

    python benchmarks/sampler.py [--width 384 --layers 8 --length 256 --batch 8] [--out FILE]

A step of a LLaMA-shaped model on made-up listings in four sources, and beside it, in turn, what its rows cost: drawing
sources and packing samples alone (the sampler), and the whole of making a batch, which a thread does one step ahead.
Below: the largest distance between the samples that a source has given and those it should have, over all prefixes, on
random paths and on the presets.
"""

import argparse
import random
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.language._causal import Causal
from models.language.chatflow import ChatFlow
from tasks.datasets import corpora, instructions, parallel
from tasks.files import write_text
from tasks.ingest_text import ingest_text
from tasks.mixture import Mixture, open_mixture
from tasks.tokenizer import Vocabulary, make_tokenizer

DRAWS = 5000
ROLES = {"en": "source", "zh": "target", "parallel": "parallel", "sft": "sft"}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    with TemporaryDirectory() as place:
        text = cost(options, Path(place)) + closeness()
    print(text)
    if options.out:
        write_text(options.out, text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def made_up(place: Path, length: int) -> tuple[Mixture, int]:
    """The mixture, and the size of its tokenizer's vocabulary."""
    for module, kind in ((corpora, "documents"), (parallel, "pairs"), (instructions, "instructions")):
        name = module.__name__.rpartition(".")[2]
        (raw := place / "raw" / name).mkdir(parents=True)
        module.fetch(raw, Path(module.__file__))
        ingest_text(kind, module.read(raw), 1, place / name)
    make_tokenizer({"kind": "bpe", "vocabulary": 8000}, [place / "corpora"], place / "tokenizer")
    sources = {"en": {"data": place / "corpora", "kind": "text", "language": "en"},
               "zh": {"data": place / "corpora", "kind": "text", "language": "zh"},
               "parallel": {"data": place / "parallel", "kind": "parallel"},
               "sft": {"data": place / "instructions", "kind": "sft"}}  # fmt: skip
    size = Vocabulary.open(place / "tokenizer").size
    return open_mixture(sources, {"grow": DRAWS}, place / "tokenizer", length, 7), size


def cost(options: argparse.Namespace, place: Path) -> str:
    """The table of times."""
    from transformers import LlamaConfig, LlamaForCausalLM

    mixture, vocabulary = made_up(place, options.length)
    config = LlamaConfig(vocab_size=vocabulary, hidden_size=options.width, intermediate_size=options.width * 8 // 3,
                         num_hidden_layers=options.layers, num_attention_heads=options.width // 64,
                         tie_word_embeddings=True, max_position_embeddings=options.length)  # fmt: skip
    model = Causal(LlamaForCausalLM(config), mixture.sources)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    packer, times = mixture._packer, {"step": [], "sampler": [], "rows": []}
    for step in range(options.steps + 1):
        began = time.perf_counter()
        batch = mixture.rows(range(step * options.batch, (step + 1) * options.batch))
        made = time.perf_counter()
        model(**batch)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        done = time.perf_counter()
        packer.load(mixture._states[0])  # the same rows again, drawn and packed but not looked up
        for _ in range(options.batch):
            packer.row()
        drawn = time.perf_counter()
        if step:  # the first packs a whole block of rows ahead
            for name, seconds in (("rows", made - began), ("step", done - made), ("sampler", drawn - done)):
                times[name].append(1e3 * seconds)
    middle = {name: median(values) for name, values in times.items()}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    share = lambda name: f"{middle[name] / middle['step']:.2%}"
    return (f"{parameters / 1e6:.1f}M parameters, {options.batch} rows of {options.length} tokens, {options.threads} "
            f"thread(s), median of {options.steps} steps\n\n"
            f"| part | ms | of a step |\n|---|---|---|\n| forward, backward, AdamW | {middle['step']:.1f} | |\n"
            f"| drawing sources and packing | {middle['sampler']:.3f} | {share('sampler')} |\n"
            f"| looking up and collating packed rows | {middle['rows']:.3f} | {share('rows')} |\n\n")  # fmt: skip


def closeness() -> str:
    """The table of largest distances."""
    lines = [f"| sources | path | largest distance of n and A in {DRAWS:,} draws, balanced | the same, iid |",
             "|---|---|---|---|"]  # fmt: skip
    for count in (2, 3, 4, 5, 8):
        rng = random.Random(count)
        names = [f"s{number}" for number in range(count)]
        ends = [[rng.random() for _ in names] for _ in range(3)]
        anchors = {at: {name: value / sum(row) for name, value in zip(names, row, strict=True)}
                   for at, row in zip((0, 0.5, 1), ends, strict=True)}  # fmt: skip
        found = [distance(ChatFlow(names, anchors=anchors, grow=DRAWS, mode=mode)) for mode in ("balanced", "iid")]
        lines.append(f"| {count} | random | {found[0]:.2f} | {found[1]:.2f} |")
    for preset in ("chatflow", "two_stage", "static"):
        found = [distance(ChatFlow(ROLES, preset=preset, grow=DRAWS, mode=mode)) for mode in ("balanced", "iid")]
        lines.append(f"| 4 | {preset} | {found[0]:.2f} | {found[1]:.2f} |")
    return "\n".join(lines) + "\n"


def distance(sampler: ChatFlow) -> float:
    """Over all prefixes and sources."""
    worst = 0.0
    for _ in range(DRAWS):
        sampler.took(sampler.draw())
        worst = max(worst, *(abs(a - n) for a, n in zip(sampler.expected, sampler.given, strict=True)))
    return worst


if __name__ == "__main__":
    main()
