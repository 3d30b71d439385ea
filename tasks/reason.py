"""Questions with one right answer -> several reasoning paths each, a vote over them, and how often it is right.

    python -m tasks.reason MODEL QUESTIONS.parquet params.yaml:language.reasoning OUT

Paths begin with tokens that in-context navigation finds (`icn`), with the most likely ones (`top_b`), or are drawn
(`sample`): as many of each, of as many tokens at most. Prompt, question at the end of a path and what is kept of the
reply are those of arXiv:2410.02284; prompts of our own wording are a setting.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl

from models.components._closest import refuse_unknown
from models.language._keys import check_identity
from models.language._voting import Final, Reasoned, accuracies, concluded, digits, letter
from models.language.icn import ICN, Form, Task, sampled
from tasks.causal import Opened, open_causal, prompt_ids, refuse_longer
from tasks.command import run
from tasks.files import digest, new_folder, write_json
from tasks.progress import counted
from tasks.settings import SettingsError, fill, read
from tasks.slots import slot

__all__ = ["Reasoning", "reason"]

WAYS = ("icn", "top_b", "sample")
ASKS = {  # kind of answer -> what a path is asked at its end, what is kept of the reply
    "number": ('\n**Final Answer (Only Number):** "', digits),
    "letter": ('\n**Final Answer (select from A, B, C, D, E):** "', letter),
}
SCHEMA = {"id": pl.String, "way": pl.String, "number": pl.Int64, "path": pl.String, "answer": pl.String,
          "right": pl.String, "generated": pl.Int64}  # fmt: skip


@dataclass(frozen=True)
class Reasoning:
    """How paths are made.

    Args:
        answer: number or letter.
        ways: of icn, top_b and sample.
        paths: of a question, for each way.
        tokens: of a path, at most, besides its first one; the paper's 256, of AQuA 512.
        candidates: first tokens of `icn` and `top_b` are of the so many most likely ones.
        temperature, top_p, seed: of `sample`.
        prompt: with {question}; what the first path follows.
        lead, between, stop: how paths are opened, parted and ended.
        limit: the first so many questions; None for all.
        chat: put prompts into the tokenizer's chat template; the paper does not.
        batch, precision: as in tasks/generate.py.
    """

    answer: str = "number"
    ways: tuple[str, ...] = WAYS
    paths: int = 4
    tokens: int = 256
    candidates: int = 100
    temperature: float = 0.7
    top_p: float = 1.0
    seed: int = 0
    prompt: str = "{question} Please show me some different ways to solve this problem."
    lead: str = "\n\nHere are different ways to solve the problem:\n### Way 1:\n* **Step 1:**"
    between: str = "\n\n### Way {number}:\n* **Step 1:**"
    stop: str = "#"
    limit: int | None = None
    chat: bool = False
    batch: int = 64
    precision: str = "float32"

    @classmethod
    def read(cls, chosen: Mapping) -> "Reasoning":
        """Settings of params.yaml; SettingsError for one that is unknown or cannot be."""
        made = fill(cls, chosen, "reasoning")
        for way in made.ways:
            refuse_unknown("reasoning", way, WAYS, SettingsError)
        refuse_unknown("reasoning's answer", made.answer, ASKS, SettingsError)
        if "{question}" not in made.prompt:
            raise SettingsError(f"reasoning: the prompt has no {{question}} in it: {made.prompt!r}")
        if not made.temperature > 0 or min(made.paths, made.tokens, made.batch, made.limit or 1) < 1 or not made.ways:
            raise SettingsError(
                f"reasoning: temperature must be > 0, counts at least 1, with one way or more; got {made}"
            )
        return made


def reason(model: str | Path, questions: str | Path, chosen: Mapping, out: str | Path) -> dict[str, float]:
    """Write the folder `out` whole or not at all.

    Args:
        model: a causal language model's folder with its tokenizer, or what a stage wrote it into.
        questions: Parquet with id, question and answer; of an answer such as GSM8K's, what follows its last "####".
        chosen: see `Reasoning`.
        out: takes paths.parquet, metrics.json {"reasoning": ...} and run.json.

    Returns:
        <way>_voted and <way>_path (accuracies), <way>_generated_tokens, <way>_read_tokens, <way>_passes, questions.

    Raises:
        SettingsError: a setting that cannot be.
        ValueError: questions without an id, a text or a right answer that can be read.
        PoisonedFolder, BrokenIdentity, TooLong: see `open_causal`, `check_identity` and `refuse_longer`.
    """
    how = Reasoning.read(chosen)
    ask, kept = ASKS[how.answer]
    rows = _questions(questions, kept)
    rows = rows.head(how.limit or len(rows))
    metrics, records = {"questions": len(rows)}, []
    with slot() as device:
        opened = open_causal(model, device, how.precision)
        tasks = {row["id"]: _task(opened, row["question"], how) for row in rows.iter_rows(named=True)}
        refuse_longer(opened, tasks, 1 + how.tokens + len(opened.tokens.encode(ask)) + Final.tokens)
        if set(how.ways) - {"sample"}:
            check_identity(opened.reader, [task.prompt for task in list(tasks.values())[:4]])
        for way in how.ways:
            found, costs = _asked(way, opened, tasks, Final(ask, '"', kept), how)
            right = dict(zip(rows["id"], rows["right"], strict=True))
            for key, each in found.items():
                for number, (path, answer) in enumerate(zip(each.paths, each.answers, strict=True)):
                    records.append({"id": key, "way": way, "number": number, "path": path.text, "answer": answer,
                                    "right": right[key], "generated": path.generated})  # fmt: skip
            scores = accuracies([each.answers for each in found.values()], [right[key] for key in found])
            metrics |= {f"{way}_{name}": value for name, value in (scores | costs).items()}
    with new_folder(out) as folder:
        pl.DataFrame(records, schema=SCHEMA).write_parquet(folder / "paths.parquet")
        write_json(folder / "metrics.json", {"reasoning": metrics})
        write_json(folder / "run.json", {"model": str(model), "content": opened.content, "settings": asdict(how),
                                         "questions": digest(questions)})  # fmt: skip
    shown = ", ".join(f"{way} {metrics[f'{way}_voted']:.3f} (a path {metrics[f'{way}_path']:.3f})" for way in how.ways)
    print(f"{len(rows)} questions, {how.paths} paths each; right by vote: {shown}")
    return metrics


def _questions(file: str | Path, kept) -> pl.DataFrame:
    rows = pl.read_parquet(file)
    if missing := {"id", "question", "answer"} - set(rows.columns):
        raise ValueError(f"{file} has no column {', '.join(sorted(missing))}; questions have id, question and answer")
    rows = rows.select(
        pl.col("id").cast(pl.String),
        "question",
        pl.col("answer").cast(pl.String).str.split("####").list.last().map_elements(kept, pl.String).alias("right"),
    )
    bad = rows.filter(pl.any_horizontal(pl.all().is_null()) | (pl.col("right") == "") | pl.col("id").is_duplicated())
    if len(bad) or rows.is_empty():
        raise ValueError(f"{file}: {len(bad)} of {len(rows)} questions have no id of their own, no text or no right "
                         f"answer that can be read{', such as ' + repr(bad['id'][0]) if len(bad) else ''}")  # fmt: skip
    return rows


def _task(opened: Opened, question: str, how: Reasoning) -> Task:
    prompt = how.prompt.replace("{question}", question)
    ids = prompt_ids(opened.tokenizer, prompt, how.lead, how.chat)
    return Task(tuple(ids), Form(how.between, how.stop), opened.tokens)


def _asked(
    way: str, opened: Opened, tasks: Mapping[str, Task], final: Final, how: Reasoning
) -> tuple[dict[str, Reasoned], dict[str, int]]:
    """Paths and votes by question, and what they cost."""
    reader = opened.reader
    passes, tokens, found = reader.passes, reader.tokens, {}
    plan = ICN(how.paths, 1, how.tokens, how.candidates, listed=way == "icn")
    for key, task in counted(tasks.items(), way, "question"):
        if way == "sample":
            seeds = [_seed(how.seed, key, number) for number in range(how.paths)]
            paths = sampled(reader, task, seeds, how.tokens, how.temperature, how.top_p, batch=how.batch)
        else:
            paths = plan(reader, task, batch=how.batch)
        found[key] = concluded(reader, task, final, paths, how.batch)
    written = sum(each.paths.generated for each in found.values())
    return found, {"generated_tokens": written, "read_tokens": reader.tokens - tokens, "passes": reader.passes - passes}


def _seed(seed: int, key: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {key} {number}".encode()).digest()[:7])


def main(model: str, questions: str, address: str, out: str) -> None:
    """python -m tasks.reason MODEL QUESTIONS.parquet params.yaml:language.reasoning OUT"""
    reason(model, questions, read(address) or {}, out)


if __name__ == "__main__":
    run(main)
