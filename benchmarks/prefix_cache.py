"""Several continuations of one prompt: a shared prefix cache in one batch, against `generate` for each of them.

    python benchmarks/prefix_cache.py [--branch 10] [--prompt 256] [--tokens 48] [--turns 3]

Models of GPT-2's and LLaMA's shape with random weights, one thread, CPU seconds, all sides in turn in one process; all
continue the same first tokens greedily, and their answers are compared.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.language._reader import Reader, decode

WORDS, WIDTH, LAYERS, HEADS = 8000, 256, 4, 4
OURS, EACH, BATCH = "shared prefix, one batch", "generate, one by one", "generate, one batch"


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"B = {options.branch}, prompt of {options.prompt} tokens, {options.tokens} written; {LAYERS} layers x "
          f"{WIDTH}, {WORDS} words; torch {torch.__version__}, transformers {transformers.__version__}\n\n"
          f"| model | side | CPU s | written tokens a second | times as fast as one by one | same answers |\n"
          f"|---|---|---|---|---|---|")  # fmt: skip
    for name, model in models(options).items():
        throughput(name, model, options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"branch": 10, "prompt": 256, "tokens": 48, "turns": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser.parse_args()


def models(options: argparse.Namespace) -> dict[str, torch.nn.Module]:
    places = options.prompt + 1 + options.tokens
    gpt2 = transformers.GPT2Config(
        vocab_size=WORDS, n_positions=places, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, bos_token_id=0, eos_token_id=0
    )
    llama = transformers.LlamaConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=3 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=places,
    )  # fmt: skip
    made = {"GPT-2": transformers.GPT2LMHeadModel(gpt2), "LLaMA": transformers.LlamaForCausalLM(llama)}
    for model in made.values():
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)  # else all texts are one token over and over
    return {name: model.eval() for name, model in made.items()}


def throughput(name: str, model: torch.nn.Module, options: argparse.Namespace) -> None:
    prompt = torch.randint(WORDS, (options.prompt,)).tolist()
    firsts = Reader(model).read([prompt]).logits[0].topk(options.branch).indices.tolist()
    never = torch.zeros(WORDS, dtype=torch.bool)

    def ours() -> list[list[int]]:
        found = decode(Reader(model).read([prompt]), [0] * len(firsts), firsts, never, options.tokens)
        return [text.ids for text in found]

    def theirs(rows: list[list[int]]) -> list[list[int]]:
        ids = torch.tensor(rows)
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=options.tokens, do_sample=False,
                              eos_token_id=None, pad_token_id=0)  # fmt: skip
        return made[:, len(prompt) :].tolist()

    sides = {
        OURS: ours,
        EACH: lambda: [theirs([[*prompt, token]])[0] for token in firsts],
        BATCH: lambda: theirs([[*prompt, token] for token in firsts]),
    }
    wanted, spent = sides[EACH](), {side: [] for side in sides}
    same = {}
    for turn in range(options.turns):
        for side in list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]:
            started = time.process_time()
            found = sides[side]()
            spent[side].append(time.process_time() - started)
            same[side] = sum(a == b for a, b in zip(found, wanted, strict=True))
    for side, seconds in spent.items():
        ratio = statistics.median(b / a for a, b in zip(seconds, spent[EACH], strict=True))
        speed = options.branch * options.tokens / statistics.median(seconds)
        print(f"| {name} | {side} | {statistics.median(seconds):.2f} | {speed:.0f} | {ratio:.2f} | "
              f"{same[side]} of {len(firsts)} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
