"""What does in-context navigation find at a budget, beside the most likely first tokens and sampling?

    python benchmarks/icn.py [--steps 400] [--budgets 50 100 300] [--seeds 3] [--encoder FOLDER]

A small LLaMA learns lists of closed sets (months, elements ...: tasks/closed_sets.json) that name nothing twice, in
pieces of words, so that many things begin alike; early members of a set come more often. Each way of decoding then
answers "Please show me some ..." until so many tokens are written: how many different right answers there are, and what
they cost. With an encoder of sentences, also how far apart the answers to a question lie, and how many are judged to
belong to it, by a classifier of the sets' names. The last lines split ranks by clusters of keys, of this model, whose
answers lie in its own training set.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).parents[1]))

from models.language._keys import check_identity, key_clusters
from models.language._reader import Reader
from models.language.icn import ICN, Form, Task, sampled, spurious_report
from tasks.causal import tokens_of
from tasks.closed_sets import closed_sets
from tasks.diversity import Encode, diversity
from tasks.files import read_json
from tasks.generate import FORMS
from tasks.on_topic import Topics, variety
from tasks.texts import TextEncoder

WORDS, LENGTH, BATCH = 420, 192, 12
SETS = Path(__file__).parents[1] / "tasks" / "closed_sets.json"


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(f"{options.steps} steps of {BATCH} x {LENGTH} tokens, B = {options.branch}, budgets in written tokens a set, "
          f"medians of {options.seeds} seeds\n")  # fmt: skip
    rows, splits, judge = {}, [], judged_by(options.encoder) if options.encoder else None
    for seed in range(options.seeds):
        words = tokenizer()
        model, loss, seconds = learned(words, seed, options.steps)
        print(f"seed {seed}: loss {loss:.3f} nats a token, {seconds:.0f} CPU s", flush=True)
        for budget in options.budgets:
            for way, told in asked(model, words, options.branch, budget, judge).items():
                rows.setdefault((budget, way), []).append(told)
        splits.append(split(model, words))
    names = list(next(iter(rows.values()))[0])
    print(f"\n| budget | decoding | {' | '.join(names)} |\n" + "|---" * (len(names) + 2) + "|")
    for (budget, way), each in rows.items():
        middle = (statistics.median(told[name] for told in each) for name in names)
        print(f"| {budget} | {way} | " + " | ".join(f"{value:.4g}" for value in middle) + " |")
    print("\n| seed | accuracy main | other | mean rank main | other | share main | other minus main at equal ranks |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    for seed, told in enumerate(splits):
        print(f"| {seed} | " + " | ".join(f"{told[name]:.3f}" for name in (
            "acc_main", "acc_other", "rank_main", "rank_other", "share_main", "matched")) + " |")  # fmt: skip


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"steps": 400, "seeds": 3, "branch": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--budgets", type=int, nargs="+", default=[50, 100, 300])
    parser.add_argument("--encoder", metavar="FOLDER", help="of sentences, such as all-MiniLM-L6-v2")
    return parser.parse_args()


def judged_by(folder: str) -> tuple[Topics, Encode]:
    """A judge of which set a text belongs to, learned from the sets' names, and the encoder that it reads with."""
    encoder, known = TextEncoder(folder), {}

    def encode(texts) -> np.ndarray:
        new = sorted(set(texts) - set(known))
        known.update(zip(new, encoder(new), strict=True))
        return np.array([known[text] for text in texts])

    names = [(alias, name) for name, each in read_json(SETS).items() for some in each["answers"] for alias in some]
    topics = Topics(encode, *zip(*names, strict=True))
    print(
        "judge of topics, on names that it has not learned: "
        + ", ".join(f"{k} {v:.3g}" for k, v in topics.told.items())
    )
    return topics, encode


def tokenizer():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    random = np.random.default_rng(0)
    made.train_from_iterator([a_list(random, name) for name in read_json(SETS) for _ in range(4)], trainers.BpeTrainer(
        vocab_size=WORDS, special_tokens=["<eos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))  # fmt: skip
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


def a_list(random: np.random.Generator, name: str) -> str:
    """Up to twelve answers of a set in any order, none twice; early ones of the set come more often."""
    entry = read_json(SETS)[name]
    first = [names[0] for names in entry["answers"]]
    share = 1 / np.arange(1, len(first) + 1) ** 0.5
    chosen = random.choice(first, size=min(12, len(first)), replace=False, p=share / share.sum())
    form = FORMS["list"]
    text = entry["instruction"] + form["plain"] + form["lead"]
    return text + "".join(answer + form["between"].format(number=place) for place, answer in enumerate(chosen, start=2))


def learned(words, seed: int, steps: int) -> tuple[torch.nn.Module, float, float]:
    torch.manual_seed(seed)
    random, names = np.random.default_rng(seed), list(read_json(SETS))
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=96, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    started = time.process_time()
    for _ in range(steps):
        rows = [words.encode(a_list(random, random.choice(names)))[:LENGTH] for _ in range(BATCH)]
        ids = torch.tensor([row + [0] * (LENGTH - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (LENGTH - len(row)) for row in rows])
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plan.step()
        optimizer.zero_grad()
    return model.eval(), loss.item(), time.process_time() - started


def tasks_of(words) -> dict[str, Task]:
    form, tokens = FORMS["list"], tokens_of(words)
    slot = form["plain"] + form["lead"]
    return {name: Task(tuple(words.encode(each.instruction + slot)), Form(form["between"], form["stop"]), tokens)
            for name, each in closed_sets().items()}  # fmt: skip


def asked(model, words, branch: int, budget: int, judge: tuple[Topics, Encode] | None) -> dict[str, dict[str, float]]:
    sets, tasks = closed_sets(), tasks_of(words)
    most, limit = 40, {"budget": budget}
    seeds = range(most * branch)
    ways = {
        "icn": lambda reader, task: ICN(most, branch, 12)(reader, task, **limit),
        "icn, list kept": lambda reader, task: ICN(most, branch, 12, clean=False)(reader, task, **limit),
        "top_b": lambda reader, task: ICN(most, branch, 12, listed=False)(reader, task, **limit),
        "sample": lambda reader, task: sampled(reader, task, seeds, 12, batch=branch, **limit),
    }
    told = {}
    for way, ask in ways.items():
        reader, texts, right, written, answers = Reader(model), {}, 0, 0, 0
        for name, task in tasks.items():
            found = ask(reader, task)
            texts[name] = [answer.text for answer in found]
            right += len({sets[name].number(text) for text in texts[name]} - {None})
            written, answers = written + found.generated, answers + len(found)
        different = sum(len(set(each) - {""}) for each in texts.values())
        told[way] = {"answers": answers, "different": different, "right and different": right, "written": written,
                     "read": reader.tokens, "passes": reader.passes, "written a right one": written / max(right, 1),
                     "self-BLEU": diversity(texts)["self_bleu"]}  # fmt: skip
        if judge:
            made = [{"id": name, "topic": name, "text": text} for name, each in texts.items() for text in each]
            found = variety(pl.DataFrame(made), *judge)[1]
            told[way] |= {
                title: found[name]
                for title, name in (
                    ("distance", "distance"),
                    ("on topic", "on_topic"),
                    ("distance on topic", "on_topic_distance"),
                )
            }
    return told


def split(model, words) -> dict[str, float]:
    sets, tasks, reader = closed_sets(), tasks_of(words), Reader(model)
    check_identity(reader, [task.prompt for task in tasks.values()])
    clusters = key_clusters(reader.head.weight, 40)
    judge = lambda name, text: sets[name].number(text) is not None
    return spurious_report(reader, tasks, judge, clusters, tokens=12)[0]


if __name__ == "__main__":
    main()
