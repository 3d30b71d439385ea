"""Prompts and a language model -> several texts for each, how different they are, and what they cost.

    python -m tasks.generate MODEL PROMPTS.parquet params.yaml:language.generated.NAME OUT

Ways to decode: `icn` (models/language/icn.py), `top_b` (the same without its list), `sample`, `greedy` (one text). With
`budget` all of them stop at as many written tokens, so that they can be compared.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import polars as pl

from models.language._keys import check_identity, key_clusters
from models.language.icn import ICN, Form, Found, Task, sampled
from tasks.causal import Opened, open_causal, prompt_ids, refuse_longer
from tasks.command import run
from tasks.diversity import diversity
from tasks.files import digest, new_folder, write_json
from tasks.progress import counted
from tasks.settings import SettingsError, fill, read
from tasks.slots import slot

__all__ = ["FORMS", "Decoding", "generate", "read_prompts", "written"]

CHECKED = 4  # prompts on which the identity is checked
DECODES = ("icn", "top_b", "sample", "greedy")
FORMS = {  # name -> how a slot is opened, what stands between two answers, what ends one
    "list": {"lead": '1. "', "plain": "\n\nAnswer:\n", "between": '"\n{number}. "', "stop": '"'},  # the paper's
    "lines": {"lead": "", "plain": "\n", "between": "\n", "stop": "\n"},  # ours: for models tuned to answer right away
}
SCHEMA = {
    "id": pl.String, "number": pl.Int64, "text": pl.String, "kept": pl.Boolean, "round": pl.Int64, "rank": pl.Int64,
    "token": pl.Int64, "token_text": pl.String, "logit": pl.Float64, "generated": pl.Int64, "ended": pl.Boolean,
}  # fmt: skip


@dataclass(frozen=True)
class Decoding:
    """How texts are made.

    Args:
        decode: icn, top_b, sample or greedy.
        rounds, branch: rounds x branch texts a prompt.
        tokens: of a text, at most, besides its first one.
        form: a name of FORMS, or {lead, between, stop} of one's own; with stop: null only the end of sequence ends.
        candidates, clean, by: see models.language.icn.ICN.
        clusters: so many clusters of the keys, and no two first tokens of a round from one; 0 for the paper's way.
        temperature, top_p, seed: of `sample`.
        budget: begin no round for a prompt once so many tokens were written; None for none.
        chat: put prompts that are texts into the tokenizer's chat template, where it has one.
        batch: texts at once.
        precision: of the weights, float32 or bfloat16.

    Raises:
        SettingsError: a value that cannot be.
    """

    decode: str = "icn"
    rounds: int = 10
    branch: int = 10
    tokens: int = 64
    form: str | Mapping = "list"
    candidates: int | None = None
    clean: bool = True
    by: str = "text"
    clusters: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    budget: int | None = None
    chat: bool = True
    batch: int = 64
    precision: str = "float32"

    def __post_init__(self):
        if self.decode not in DECODES:
            raise SettingsError(f"decode is one of {', '.join(DECODES)}; got {self.decode!r}")
        if isinstance(self.form, str) and self.form not in FORMS:
            raise SettingsError(f"form is one of {', '.join(FORMS)}, or {{lead, between, stop}}; got {self.form!r}")
        if not isinstance(self.form, str) and set(self.form) != {"lead", "between", "stop"}:
            raise SettingsError(f"a form has lead, between and stop; got {', '.join(map(str, self.form))}")
        if not isinstance(self.form, str):
            _check_form(self.form)
        if min(self.rounds, self.branch, self.tokens, self.batch) < 1 or self.clusters < 0:
            raise SettingsError("rounds, branch, tokens and batch must be at least 1, clusters at least 0")
        if not self.temperature > 0 or not 0 < self.top_p <= 1:
            raise SettingsError("temperature must be > 0 and top_p in (0, 1]; for the most likely words decode: greedy")
        if self.budget is not None and self.budget < 1:
            raise SettingsError(f"a budget is at least 1 token, got {self.budget}")

    @classmethod
    def read(cls, chosen: Mapping) -> "Decoding":
        """Settings of params.yaml; SettingsError for one that is unknown or cannot be."""
        return fill(cls, chosen, "generation")

    def lead(self, raw: bool) -> str:
        """What opens the slot; behind a bare text the paper says "Answer:" first."""
        form = FORMS[self.form] if isinstance(self.form, str) else dict(self.form)
        return form.get("plain", "") * raw + form["lead"]


def _check_form(form: Mapping) -> None:
    """A form of one's own: texts, `between` with no other field than {number}; `stop` may be null."""
    try:
        form["between"].format(number=2)
    except (AttributeError, KeyError, IndexError, ValueError) as error:
        raise SettingsError(f"a form's `between` is a text with {{number}} where a number goes; got "
                            f"{form['between']!r} ({error})") from None  # fmt: skip
    if not isinstance(form["lead"], str) or not (
        form["stop"] is None or form["stop"] and isinstance(form["stop"], str)
    ):
        raise SettingsError(f"a form's `lead` is a text, its `stop` a text or null; got {dict(form)}")


def read_prompts(file: str | Path) -> pl.DataFrame:
    """Prompts of a Parquet file: `id`, and `prompt` (a text) or `messages` (a list of {role, content}).

    Raises:
        ValueError: a column is missing, there is no row, an id is there twice, or a prompt is empty.
    """
    rows = pl.read_parquet(file)
    kinds = [name for name in ("prompt", "messages") if name in rows.columns]
    if "id" not in rows.columns or len(kinds) != 1:
        raise ValueError(f"{file} has columns {', '.join(rows.columns)}; prompts have id, and prompt or messages")
    rows = rows.select(pl.col("id").cast(pl.String), pl.col(kinds[0]).alias("prompt"))
    if rows.is_empty():
        raise ValueError(f"{file} has no row: there is nothing to write for")
    if rows["id"].null_count() or rows["id"].n_unique() < len(rows):
        raise ValueError(f"{file}: {len(rows) - rows['id'].n_unique()} ids are there twice or empty; ids tell apart")
    text = kinds[0] == "prompt"
    empty = rows.filter(pl.col("prompt").is_null() | ((pl.col("prompt").str.len_chars() if text else
                        pl.col("prompt").list.len()) == 0))  # fmt: skip
    if len(empty):
        raise ValueError(f"{file}: {len(empty)} of {len(rows)} prompts are empty, such as that of {empty['id'][0]!r}")
    return rows


def written(opened: Opened, prompts: pl.DataFrame, how: Decoding) -> tuple[pl.DataFrame, dict[str, float]]:
    """Texts of all prompts, and metrics: diversity and costs.

    Args:
        prompts: of `read_prompts`.

    Raises:
        BrokenIdentity: `icn` of a model whose logits are not made of its keys; nothing is written then.
        TooLong: prompts that do not fit; names how many, and one.
        ValueError: a form that the tokenizer cannot write, or more texts than first tokens.
    """
    asked = {row["id"]: task_of(opened, row["prompt"], how) for row in prompts.iter_rows(named=True)}
    refuse_longer(opened, asked, 1 + how.tokens)
    ways = _way(opened, asked, how)
    passes, tokens = opened.reader.passes, opened.reader.tokens  # the check's own do not count
    rows, texts, left_out = [], {}, 0
    for key, task in counted(asked.items(), "generate", "prompt"):
        found = ways(key, task)
        rows += list(_rows(key, found))
        texts[key] = [answer.text for answer in found]
        left_out += found.left_out
    frame = pl.DataFrame(rows, schema=SCHEMA)
    kept, spent = int(frame["kept"].sum()), int(frame["generated"].sum())
    metrics = {
        "prompts": len(prompts), "texts": len(frame), "kept": kept, "ended": float(frame["ended"].mean()),
        "left_out": left_out, "passes": opened.reader.passes - passes, "read_tokens": opened.reader.tokens - tokens,
        "generated_tokens": spent,
    }  # fmt: skip
    if kept:
        metrics |= {f"{name}_per_kept": metrics[name] / kept for name in ("passes", "read_tokens", "generated_tokens")}
    return frame, metrics | diversity(texts)


def task_of(opened: Opened, prompt: str | Sequence[Mapping], how: Decoding) -> Task:
    """A prompt with its open slot."""
    form = FORMS[how.form] if isinstance(how.form, str) else how.form
    raw = isinstance(prompt, str) and not (how.chat and opened.tokenizer.chat_template)
    ids = prompt_ids(opened.tokenizer, prompt, how.lead(raw), how.chat)
    return Task(tuple(ids), Form(form["between"], form["stop"]), opened.tokens)


def _way(opened: Opened, asked: Mapping[str, Task], how: Decoding) -> Callable[[str, Task], Found]:
    """(id, task) -> what was found."""
    if how.decode in ("sample", "greedy"):
        count = how.rounds * how.branch if how.decode == "sample" else 1
        limits = {"tokens": how.tokens, "top_p": how.top_p, "budget": how.budget,
                  "temperature": how.temperature if how.decode == "sample" else 0,
                  "batch": how.batch if how.budget is None else min(how.batch, how.branch)}  # fmt: skip
        seeds = lambda key: [_seed(how.seed, key, number) for number in range(count)]
        return lambda key, task: sampled(opened.reader, task, seeds(key), **limits)
    check_identity(opened.reader, [task.prompt for task in list(asked.values())[:CHECKED]])
    clusters = None
    if how.clusters:
        clusters = key_clusters(opened.reader.head.weight, how.clusters, how.seed, opened.kept())
    plan = ICN(how.rounds, how.branch, how.tokens, how.candidates, how.decode == "icn", how.clean, how.by,
               apart=bool(clusters))  # fmt: skip
    found = partial(plan, clusters=clusters, budget=how.budget, batch=how.batch)
    return lambda key, task: found(opened.reader, task)


def _rows(key: str, found: Found) -> Iterator[dict]:
    seen = {""}
    for number, answer in enumerate(found):
        yield {"id": key, "number": number, "text": answer.text, "kept": answer.text not in seen, "round": answer.round,
               "rank": answer.rank, "token": answer.token, "token_text": answer.token_text, "logit": answer.logit,
               "generated": answer.generated, "ended": answer.ended}  # fmt: skip
        seen.add(answer.text)


def _seed(seed: int, key: str, number: int) -> int:
    """A text depends on its prompt's id and its number, not on what is asked beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed} {key} {number}".encode()).digest()[:7])


def generate(model: str | Path, prompts: str | Path, chosen: Mapping, out: str | Path) -> dict[str, float]:
    """Write the folder `out` whole or not at all.

    Args:
        model: a causal language model's folder with its tokenizer, or what a stage wrote it into.
        prompts: Parquet, see `read_prompts`.
        chosen: see `Decoding`.
        out: takes texts.parquet (a row for each text; `kept`: not empty, and not written before for its prompt),
            metrics.json {"generation": ...} and run.json.

    Returns:
        texts, kept, ended (share), left_out (answers that a list had no place for), distinct_1, _2, _3, self_bleu
        (absent for single texts), passes, read_tokens, generated_tokens, and each of the last three per kept text.

    Raises:
        SettingsError: a setting that cannot be.
        PoisonedFolder, BrokenIdentity, TooLong, ValueError: see `open_causal`, `written`, `read_prompts`.
    """
    how, rows, started = Decoding.read(chosen), read_prompts(prompts), time.monotonic()
    with slot() as device:
        opened = open_causal(model, device, how.precision)
        frame, metrics = written(opened, rows, how)
    with new_folder(out) as folder:
        frame.write_parquet(folder / "texts.parquet")
        write_json(folder / "metrics.json", {"generation": metrics})
        write_json(folder / "run.json", {
            "model": str(model), "content": opened.content, "prompts": digest(prompts), "decoding": asdict(how),
            "seconds": time.monotonic() - started,
        })  # fmt: skip
    shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("distinct_2", "self_bleu") if name in metrics)
    print(f"{how.decode}: {metrics['texts']} texts for {len(rows)} prompts, {metrics['kept']} kept; {shown}; "
          f"{metrics['passes']} passes, {metrics['generated_tokens']} tokens written")  # fmt: skip
    return metrics


def main(model: str, prompts: str, address: str, out: str) -> None:
    """python -m tasks.generate MODEL PROMPTS.parquet params.yaml:language.generated.NAME OUT"""
    generate(model, prompts, read(address) or {}, out)


if __name__ == "__main__":
    run(main)
