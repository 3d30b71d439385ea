"""The columns of labelled examples, and what must hold of them."""

import polars as pl

from tasks.datasets._rules import Rule, at_least_rows, in_set, never, not_null

__all__ = ["COLUMNS", "SPLITS", "conform", "rules"]

SPLITS = ("train", "dev", "test")
COLUMNS = {
    "text": pl.String,  # the sentence, premise, question or query; for tags, words with one space between them
    "second": pl.String,  # hypothesis, context or document; null where there is none
    "label": pl.String,  # a class, a number, the right choice's place, or the text to write; null where it is unknown
    "labels": pl.List(pl.String),  # tags: one B-x, I-x or O for each word of `text`
    "spans": pl.List(pl.Struct({"start": pl.Int64, "text": pl.String})),  # answers in `second`; start in characters
    "choices": pl.List(pl.String),  # the options; their number may differ from row to row
    "split": pl.String,  # train, dev or test
    "licence": pl.String,
}

CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"  # all but tab and line ends


def conform(frame: pl.DataFrame | pl.LazyFrame) -> pl.LazyFrame:
    """All columns in their order and type; those that are absent are null."""
    frame = frame.lazy()
    there = frame.collect_schema().names()
    return frame.select(
        pl.col(name).cast(kind) if name in there else pl.lit(None, kind).alias(name) for name, kind in COLUMNS.items()
    )


def rules() -> list[Rule]:
    """What every set of examples keeps: texts, known splits, an answer in all rows, spans that are where they say."""
    text, second, answer = pl.col("text"), pl.col("second"), pl.col("spans").list.first()
    start, found = answer.struct.field("start"), answer.struct.field("text")
    said = second.str.slice(start, found.str.len_chars())
    answered = pl.any_horizontal(pl.col(name).is_not_null() for name in ("label", "labels", "spans"))
    tagged = pl.col("labels").list.len() != text.str.split(" ").list.len()
    chosen = pl.col("label").cast(pl.Int64, strict=False)
    outside = chosen.is_null() | ~chosen.is_between(0, pl.col("choices").list.len().cast(pl.Int64) - 1)
    beyond = outside & pl.col("choices").is_not_null()
    control = pl.concat_str(text, second.fill_null("")).str.contains(CONTROL)
    return [
        *map(not_null, ("text", "split", "licence")),
        in_set("split", SPLITS),
        at_least_rows(2),
        never("text not blank", "text has letters", text.str.strip_chars() == "", "text"),
        never("answer", "each row has label, labels or spans", ~answered, "label", "labels", "spans"),
        never("tag per word", "labels has one tag for each word of text", tagged, "labels", "text"),
        never("span in place", "second has the answer at its start", said != found, "second", "spans"),
        never("choice exists", "label is the place of a choice", beyond, "label", "choices"),
        never("control characters", "text and second hold no control characters", control, "text", "second"),
    ]
