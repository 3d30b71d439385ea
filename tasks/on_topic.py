"""Written texts, and what they were to be about -> the share that is about it, and how far apart these texts lie.

    python -m tasks.on_topic TEXTS.parquet PROMPTS.parquet CATALOGUE ENCODER params.yaml:language.judged.NAME OUT

    v = mean of the encoder's last hidden states over a text's tokens              tasks/texts.py
    p = softmax(W (v - m) / s + b)    fitted on the titles of the catalogue, whose categories are the topics

A text is on topic when the most probable topic is its prompt's. Texts that are wrong are different too: a decoding that
writes more varied texts has gained as far as the same measures over the texts on topic alone say so.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch.nn.functional import cross_entropy

from models.components._closest import refuse_unknown
from tasks import flavor
from tasks.answers import classes
from tasks.authoring._catalogue import JOIN, read_catalogue
from tasks.command import run
from tasks.diversity import Encode, diversity
from tasks.files import digest, new_folder, write_json
from tasks.settings import SettingsError, read
from tasks.texts import TextEncoder

__all__ = ["Topics", "Unjudged", "on_topic", "variety"]

KEYS = ("texts", "data", "catalogue", "encoder", "level")
HELD = 5  # every so many texts, by hash, is kept from the fit and tells how good it is
LEAST = 5  # texts of a topic that can be learned
DECAY, STEPS = 1e-2, 100


class Unjudged(ValueError):
    """There is nothing by which to tell what a text is about."""


class Topics:
    """Which topic a text has: a linear classifier on the vectors of an encoder.

    Args:
        encode: texts -> (N, D).
        texts, topics: to learn from, one topic a text. Of equal texts the first counts; topics with fewer than LEAST
            texts are left out, every HELD-th text is held out.

    Attributes:
        names: of the topics.
        told: accuracy, f1 (macro) and matthews on the held-out texts, `majority` (the accuracy of saying the commonest
            topic), and the counts `topics`, `learned` and `held_out`.

    Raises:
        Unjudged: there are not two topics.
    """

    def __init__(self, encode: Encode, texts: Sequence[str], topics: Sequence[str]):
        rows = pl.DataFrame({"text": texts, "topic": topics}, schema={"text": pl.String, "topic": pl.String})
        rows = rows.filter(pl.col("text").str.strip_chars() != "").unique("text", keep="first", maintain_order=True)
        held = pl.col("text").map_elements(_place, pl.Int64) == 0
        rows = rows.with_columns(held=held).filter((~pl.col("held")).sum().over("topic") >= LEAST).sort("topic", "text")
        self.names = rows["topic"].unique(maintain_order=True).to_list()
        fit, other = rows.filter(~pl.col("held")), rows.filter("held")
        if len(self.names) < 2 or not len(other):
            raise Unjudged(f"of {len(texts)} texts {len(rows)} are different and of a topic with {LEAST} or more: "
                           f"{len(self.names)} topics, {len(other)} texts held out; a judge needs two topics and a "
                           f"text to be judged by")  # fmt: skip
        self._encode = encode
        self._fit(encode(fit["text"].to_list()), self._numbers(fit))
        right, said = self._numbers(other), self._logits(other["text"].to_list()).argmax(1)
        found = classes(said, right, len(self.names))
        commonest = int(np.bincount(self._numbers(fit)).argmax())
        self.told = found | {
            "majority": float((right == commonest).mean()), "topics": len(self.names), "learned": len(fit),
            "held_out": len(other),
        }  # fmt: skip

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """The most probable topic of each text."""
        return [self.names[number] for number in self._logits(texts).argmax(1)] if len(texts) else []

    def _numbers(self, rows: pl.DataFrame) -> np.ndarray:
        number = {name: place for place, name in enumerate(self.names)}
        return np.array([number[name] for name in rows["topic"]])

    def _fit(self, vectors: np.ndarray, labels: np.ndarray) -> None:
        self._mean, self._scale = vectors.mean(0), vectors.std(0) + 1e-6
        x_ND, y_N = self._scaled(vectors), torch.from_numpy(labels)
        weight = torch.zeros(x_ND.shape[1], len(self.names), requires_grad=True)
        bias = torch.zeros(len(self.names), requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = cross_entropy(x_ND @ weight + bias, y_N) + DECAY / 2 * weight.square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        self._weight, self._bias = weight.detach(), bias.detach()

    def _scaled(self, vectors: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(((vectors - self._mean) / self._scale).astype(np.float32))

    def _logits(self, texts: Sequence[str]) -> np.ndarray:
        return (self._scaled(self._encode(texts)) @ self._weight + self._bias).numpy()


def variety(texts: pl.DataFrame, topics: Topics, encode: Encode) -> tuple[pl.DataFrame, dict[str, float]]:
    """Each text with its topic, and metrics over those whose prompt's topic is known to the judge.

    Args:
        texts: columns id (of the prompt), text, and topic, what it was to be about.

    Returns:
        The rows with `judged` (null for an empty text) and `on_topic`, which an empty text is not; and on_topic (the
        share), on_topic_by_chance (what the same texts in any order would give), texts, unjudged, what
        tasks/diversity.py tells of them, and again as on_topic_distance ... of those on topic alone.

    Raises:
        Unjudged: no text's topic is known; names some of both kinds.
    """
    known = texts.filter(pl.col("topic").is_in(topics.names))
    if not len(known):
        raise Unjudged(f"the prompts are about {_some(texts['topic'].unique())}, the titles of {_some(topics.names)}; "
                       f"no topic is in both")  # fmt: skip
    said = known["text"].unique(maintain_order=True).to_list()
    said = [text for text in said if text.strip()]
    judged = pl.DataFrame({"text": said, "judged": topics(said)}, schema={"text": pl.String, "judged": pl.String})
    known = known.join(judged, on="text", how="left", maintain_order="left")
    known = known.with_columns(on_topic=(pl.col("judged") == pl.col("topic")).fill_null(False))
    vectors = dict(zip(said, encode(said), strict=True)) if said else {}
    measured = lambda rows: diversity(_by_prompt(rows), lambda some: np.array([vectors[text] for text in some]))
    count = lambda column: known.group_by(pl.col(column).alias("topic")).len()
    both = count("judged").join(count("topic"), on="topic")
    found = {
        "texts": len(texts), "unjudged": len(texts) - len(known), "on_topic": float(known["on_topic"].mean()),
        "on_topic_by_chance": (both["len"] * both["len_right"]).sum() / len(known) ** 2, **measured(known),
    }  # fmt: skip
    return known, found | {f"on_topic_{name}": value for name, value in measured(known.filter("on_topic")).items()}


def _by_prompt(rows: pl.DataFrame) -> dict[str, list[str]]:
    return {key: part["text"].to_list() for (key,), part in rows.group_by("id", maintain_order=True)}


def _place(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) % HELD


def _some(names: Sequence[str]) -> str:
    kept = sorted(str(name) for name in names)
    return ", ".join(kept[:3]) + (f" and {len(kept) - 3} others" if len(kept) > 3 else "")


def on_topic(
    texts: str | Path, prompts: str | Path, catalogue: str | Path, encoder: str | Path, chosen: Mapping, out: str | Path
) -> dict[str, float]:
    """Judge the texts of tasks/generate.py, and write the folder `out` whole or not at all.

    Args:
        texts: Parquet with id and text.
        prompts: Parquet with id and topic: categories from the top, joined by " > "; and perhaps `reference`, a text
            that is known to be about it.
        catalogue: ingested folder, whose titles and categories teach the judge.
        encoder: a transformers folder with a tokenizer, or what a stage wrote it into; causal models will do too.
        chosen: {level: categories of a path that make a topic, from the top; null for all}, and names for the graph.
        out: takes topics.parquet (see `variety`), metrics.json {"judged": ...} and run.json.

    Returns:
        What `variety` gives, and the judge's figures on held-out titles as judge_accuracy, judge_majority ..., and
        judge_on_references: what share of the references it finds on topic. A judge that knows titles need not know
        other texts; where this is low, so is every on_topic.

    Raises:
        SettingsError, CatalogueUnreadable: what cannot work.
        PoisonedFolder, UnreadableEncoder: of the encoder.
        ValueError: a column is missing, or a text's prompt is not among the prompts.
        Unjudged: nothing can be judged; see `Topics` and `variety`.
    """
    level = _level(chosen)
    asked = _joined(texts, prompts, level)
    place = Path(encoder, "model") if Path(encoder, "model").is_dir() else Path(encoder)
    if not (place / "config.json").is_file():
        raise SettingsError(f"{encoder} holds no encoder of texts: neither config.json nor model/; it is a folder that "
                            f"transformers loads, or that of a stage which made one")  # fmt: skip
    flavor.check_folder(place)
    encode = TextEncoder(place)
    products = read_catalogue(catalogue)
    topics = Topics(encode, [one.title for one in products], [_cut(one.path, level) for one in products])
    rows, found = variety(asked, topics, encode)
    found |= {f"judge_{name}": value for name, value in topics.told.items()}
    if "reference" in asked.columns:
        known = asked.unique("id", maintain_order=True).select("id", "topic", text="reference")
        found["judge_on_references"] = variety(known, topics, encode)[1]["on_topic"]
    with new_folder(out) as folder:
        rows.write_parquet(folder / "topics.parquet")
        write_json(folder / "metrics.json", {"judged": found})
        write_json(folder / "run.json", {
            "texts": digest(texts), "prompts": digest(prompts), "catalogue": digest(catalogue), "level": level,
            "encoder": flavor.content(place),
        })  # fmt: skip
    told = lambda name: f"{found[name]:.1%}" if name in found else "an unknown share"
    print(f"{told('on_topic')} of {len(rows)} texts are on topic (by chance {told('on_topic_by_chance')}); the judge "
          f"is right on {told('judge_accuracy')} of {found['judge_held_out']} held-out titles and "
          f"{told('judge_on_references')} of the references")  # fmt: skip
    return found


def _level(chosen: Mapping) -> int | None:
    for key in chosen:
        refuse_unknown("language.judged", key, KEYS, SettingsError)
    level = chosen.get("level")
    if level is not None and (type(level) is not int or level < 1):
        raise SettingsError(f"level is null or a whole number >= 1, got {level!r}")
    return level


def _joined(texts: str | Path, prompts: str | Path, level: int | None) -> pl.DataFrame:
    rows, asked = pl.read_parquet(texts), pl.read_parquet(prompts)
    for file, frame, columns in ((texts, rows, ("id", "text")), (prompts, asked, ("id", "topic"))):
        if absent := [name for name in columns if name not in frame.columns]:
            raise ValueError(f"{file} has no column {', '.join(absent)}, but {', '.join(frame.columns)}; what a text "
                             f"was to be about is the column topic of its prompt")  # fmt: skip
    asked = asked.select(pl.col("id").cast(pl.String), "topic", *({"reference"} & set(asked.columns)))
    rows = rows.with_columns(pl.col("id").cast(pl.String)).join(asked, on="id", how="left", maintain_order="left")
    if lost := rows["topic"].null_count():
        raise ValueError(f"{lost} of {len(rows)} texts of {texts} have no prompt with a topic in {prompts}, such as "
                         f"that of {rows.filter(pl.col('topic').is_null())['id'][0]!r}")  # fmt: skip
    return rows.with_columns(pl.Series("topic", [_cut(topic, level) for topic in rows["topic"]], pl.String))


def _cut(path: str, level: int | None) -> str:
    return JOIN.join(path.split(JOIN)[:level])


def main(texts: str, prompts: str, catalogue: str, encoder: str, address: str, out: str) -> None:
    """python -m tasks.on_topic TEXTS.parquet PROMPTS.parquet CATALOGUE ENCODER params.yaml:language.judged.NAME OUT"""
    on_topic(texts, prompts, catalogue, encoder, read(address) or {}, out)


if __name__ == "__main__":
    run(main)
