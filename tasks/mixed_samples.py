"""One source of a mixture: texts, pairs or instructions -> samples of tokens, cut once and kept by what decides them.

    text       first document last       every token is learned; longer than a row: cut into samples of a row
    parallel   first a newline b last    a pair as text (concat), with the names of its languages (tagged), or as an
                                         instruction to translate (instruct); its direction alternates with the epochs
    sft        first prompt answer last  only the answer and its end are learned

Pairs and instructions stay whole: one that is longer than a row is left out and counted, for an answer without its end
teaches to go on. The markers of the template `chatflow` are those on the model card of Linly's Chinese-LLaMA-2; `plain`
is the form of TencentPretrain's llm_sft; all others, and what joins an instruction to its input, are ours.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from models.language.packing import split
from tasks.base import load_tokenizer
from tasks.files import locked, new_folder, read_json
from tasks.ingest_text import batches
from tasks.progress import progress
from tasks.settings import SettingsError, fill
from tasks.shards import Shards, Writer

__all__ = ["UNSPACED", "Entry", "MixtureError", "Samples", "Tokenizing", "open_samples", "prompted"]

KINDS = {"text": ("documents",), "parallel": ("pairs",), "sft": ("instructions",)}  # -> kinds of ingested data
TEMPLATES = {"text": ("plain",), "parallel": ("concat", "tagged", "instruct"), "sft": ("chatflow", "plain", "chat")}
UNSPACED = ("zh", "ja", "th", "yue", "lo", "km", "my")  # languages whose sentences follow each other without a space
TRANSLATE = {"en": "Translate into English:", "zh": "翻译成中文：", "ja": "日本語に訳してください："}
AT_ONCE = 1024
UNKNOWN = 0.1  # of a source's tokens: more unknown ones teach to write them


class MixtureError(ValueError):
    """A source has nothing to give, or a tokenizer cannot read it."""


@dataclass(frozen=True)
class Entry:
    """Settings of a source.

    Args:
        data: an ingested folder, several, or a polars frame of the columns of its kind.
        kind: "text", "parallel" or "sft".
        language: only rows of this language; of pairs, those with it on either side.
        template: "concat", "tagged" or "instruct" of pairs; "chatflow", "plain", or "chat", the tokenizer's own, of
            instructions; the first is the default.
        role: for the sampler's presets: "source", "target", "parallel" or "sft"; without it the kind says it, and of
            texts the first is the source language, the others are targets.
        repeats: epochs of this source at most.
    """

    data: object
    kind: str
    language: str | None = None
    template: str | None = None
    role: str | None = None
    repeats: float | None = None

    @classmethod
    def read(cls, name: str, settings: Mapping) -> "Entry":
        """Check a source's settings.

        Raises:
            SettingsError: names all that is wrong.
        """
        made = fill(cls, settings, f"source {name}")
        if made.kind not in KINDS:
            raise SettingsError(f"source {name}: kind is {made.kind!r}; it is one of {', '.join(KINDS)}")
        if made.template not in (None, *TEMPLATES[made.kind]):
            raise SettingsError(f"source {name}: template is {made.template!r}; of kind {made.kind} it is one of "
                                f"{', '.join(TEMPLATES[made.kind])}")  # fmt: skip
        if made.repeats is not None and not (isinstance(made.repeats, (int, float)) and made.repeats > 0):
            raise SettingsError(f"source {name}: repeats is {made.repeats!r}; it is a number of epochs above 0")
        return made

    @property
    def form(self) -> str:
        """The template."""
        return self.template or TEMPLATES[self.kind][0]

    @property
    def instructs(self) -> bool:
        """Whether only the answer is learned."""
        return self.kind == "sft" or self.form == "instruct"


class Tokenizing:
    """A tokenizer of transformers as mixtures use it: without its own special tokens, many texts at a time.

    Raises:
        MixtureError: it has no fast form, or nothing to end a text with.
    """

    def __init__(self, folder: str | Path):
        from tokenizers import Tokenizer

        self.auto = load_tokenizer(folder)
        if not self.auto.is_fast:
            raise MixtureError(f"{folder} holds {type(self.auto).__name__}, which has no fast form (tokenizer.json)")
        written = self.auto.backend_tokenizer.to_str()
        self.sha256 = hashlib.sha256(written.encode()).hexdigest()
        self.backend = Tokenizer.from_str(written)
        self.backend.no_padding()
        self.backend.no_truncation()
        self.rows = max(self.backend.get_vocab(with_added_tokens=True).values()) + 1
        pick = lambda *roles: next((found for role in roles if (found := getattr(self.auto, role)) is not None), None)
        self.first, self.last = pick("bos_token_id", "cls_token_id"), pick("eos_token_id", "sep_token_id")
        self.unknown, self.filler = self.auto.unk_token_id, self.auto.pad_token_id or 0
        if self.last is None:
            raise MixtureError(f"the tokenizer of {folder} has no token that ends a text (eos or sep); give it one")

    def __call__(self, texts: list[str], special: bool = False) -> list[list[int]]:
        """The ids of each text; special tokens that are written out in it are text, unless `special`."""
        self.backend.encode_special_tokens = not special
        return [found.ids for found in self.backend.encode_batch_fast(texts, add_special_tokens=False)]


class Samples:
    """The samples of one source: sample u is a piece [start, stop) of an item's `first prompt answer last`.

    Args:
        name, entry: of the source.
        shards: items of prompt and answer, one after another for each variant.
        first, last: ids, None for no first.
        length: of a row.
        report: of the reading.
    """

    def __init__(
        self, name: str, entry: Entry, shards: Shards, first: int | None, last: int, length: int, report: dict
    ):
        self.name, self.entry, self.shards, self.first, self.last = name, entry, shards, first, last
        self.whole, self.variants = entry.kind != "text", 2 if entry.kind == "parallel" else 1
        around = 1 + (first is not None)
        borders = np.asarray(shards.sentences)
        sizes = np.diff(borders).reshape(-1, self.variants, 2).sum(-1) + around  # items x variants
        self.report = report | {"items": len(sizes), "too_long": 0}
        if self.whole:
            self.sizes = sizes
            self.item = np.flatnonzero(sizes.max(1, initial=0) <= length)
            self.report["too_long"] = len(sizes) - len(self.item)
        else:
            self.item, self.start, self.stop = split(sizes[:, 0], length)
            alone = (self.stop - self.start == 1) & (self.start > 0)  # only the end: the piece before learns it
            self.item, self.start, self.stop = (part[~alone] for part in (self.item, self.start, self.stop))
        if not len(self.item):
            raise MixtureError(f"source {name}: all {len(sizes)} items are longer than a row of {length} tokens; "
                               f"lengthen the row")  # fmt: skip
        self.report |= {"samples": len(self), "tokens": int(shards.manifest["tokens"]) // self.variants}

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.item)

    def piece(self, sample: int, variant: int) -> tuple[int, int, int]:
        """Item, start and stop of a sample."""
        item = int(self.item[sample])
        return (item, 0, int(self.sizes[item, variant])) if self.whole else (
            item, int(self.start[sample]), int(self.stop[sample]))  # fmt: skip

    def tokens(self, item: int, variant: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """ids and labels_lm of a piece, both (stop - start,) int64; the label of its last place is the token behind it,
        -100 at the item's end."""
        first, between, last = self.shards.sentences[(item * self.variants + variant) * 2 :][:3].tolist()
        lead = int(self.first is not None)
        end = lead + last - first + 1
        body = self.shards.ids[first + max(start - lead, 0) : first + max(min(stop + 1, end - 1) - lead, 0)]
        parts = [body.astype(np.int64)]
        if lead and start == 0:
            parts.insert(0, [self.first])
        if stop >= end - 1:
            parts.append([self.last])
        made = np.concatenate(parts).astype(np.int64)
        labels = made[1 : stop - start + 1]
        labels = np.append(labels, -100) if stop == end else labels.copy()
        if self.entry.instructs:
            labels[: max(lead + between - first - 1 - start, 0)] = -100
        return made[: stop - start], labels


def open_samples(
    name: str, entry: Entry, tokenizing: Tokenizing, length: int, heldout: bool, cache: Path | None
) -> Samples:
    """Cut the texts of a source, or open what was cut before.

    Args:
        tokenizing: decides, with data and settings, what is kept where in `cache`.
        length: of a row.
        heldout: the held-out split of folders (rows/heldout.parquet, or dev where there is none).
        cache: folder for the tokens; None keeps none.

    Raises:
        MixtureError: no rows, or more than a tenth of the tokens unknown.
        SettingsError: the folder holds another kind of data.
    """
    folders = _folders(entry.data)
    digests = []
    for folder in folders:
        if not (folder / "manifest.json").is_file():
            raise SettingsError(f"source {name}: {folder} is no folder of ingested data (it has no manifest.json); run "
                                f"its ingest stage")  # fmt: skip
        manifest = read_json(folder / "manifest.json")
        if manifest.get("kind") not in (None, *KINDS[entry.kind]):
            raise SettingsError(f"source {name}: {folder} holds {manifest['kind']}, but kind {entry.kind} reads "
                                f"{KINDS[entry.kind][0]}")  # fmt: skip
        digests.append(manifest.get("digest") or hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest())
    key = [digests, entry.kind, entry.form, entry.language, heldout, tokenizing.sha256, tokenizing.auto.chat_template]
    place = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    frames = lambda: _frames(name, entry, folders, heldout)
    first = tokenizing.first if entry.form != "chat" or _leads(tokenizing) else None
    if cache is None or not folders:
        with TemporaryDirectory() as folder:  # what is mapped stays readable without its name
            report = _write(name, entry, frames(), tokenizing, Path(folder) / "tokens")
            shards = Shards.open(Path(folder) / "tokens", verify=False)
    else:
        with locked(f"tokens-{place}"):  # the ranks of a run come together
            if not (cache / place / "manifest.json").is_file():
                with new_folder(cache / place) as folder:
                    _write(name, entry, frames(), tokenizing, folder)
        shards = Shards.open(cache / place)
        report = shards.manifest["report"]
    return Samples(name, entry, shards, first, tokenizing.last, length, report)


def prompted(row: Mapping, form: str, auto=None) -> tuple[str, str]:
    """Prompt and answer of an instruction.

    >>> prompted({"instruction": "Name it.", "input": "red bag", "output": "Bag"}, "chatflow")
    ('### Instruction:Name it.\\nred bag  ### Response:', 'Bag')
    """
    asked = [part for part in (row.get("instruction"), row.get("input")) if part]
    if form == "plain":
        return "".join(asked).replace("\\n", "\n"), row["output"].replace("\\n", "\n")
    if form == "chat":
        turns = [{"role": "user", "content": "\n".join(asked)}]
        begun = auto.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        whole = auto.apply_chat_template([*turns, {"role": "assistant", "content": row["output"]}], tokenize=False)
        if not whole.startswith(begun):
            raise MixtureError("the tokenizer's chat template does not continue its own prompt with the answer; mend "
                               "it, or choose template: chatflow")  # fmt: skip
        return begun.removeprefix(auto.bos_token or ""), whole[len(begun) :].rstrip().removesuffix(auto.eos_token or "")
    return f"### Instruction:{chr(10).join(asked)}  ### Response:", row["output"]


def _leads(tokenizing: Tokenizing) -> bool:
    """Whether the chat template writes the first token itself."""
    auto = tokenizing.auto
    if not auto.chat_template:
        raise MixtureError("template: chat needs a tokenizer with a chat template; this one has none")
    turns = [{"role": "user", "content": "a"}]
    begun = auto.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return bool(auto.bos_token) and begun.startswith(auto.bos_token)


def _folders(data) -> list[Path]:
    if isinstance(data, pl.DataFrame):
        return []
    return [Path(folder) for folder in ([data] if isinstance(data, (str, Path)) else data)]


def _frames(name: str, entry: Entry, folders: list[Path], heldout: bool) -> Iterator[pl.DataFrame]:
    """The rows of a source, a piece at a time, with a bar that counts them."""
    if isinstance(entry.data, pl.DataFrame):
        rows, pieces = len(entry.data), entry.data.iter_slices(AT_ONCE)
    else:
        splits = [_split(folder, heldout) for folder in folders]
        rows = sum(_size(folder, split) for folder, split in zip(folders, splits, strict=True))
        pieces = chain.from_iterable(map(batches, folders, splits))
    with progress(rows, f"tokens of {name}", "row") as bar:
        for piece in pieces:
            yield piece
            bar.update(len(piece))


def _split(folder: Path, heldout: bool) -> str:
    names = ("heldout", "dev") if heldout else ("train",)
    return next((name for name in names if (folder / "rows" / f"{name}.parquet").is_file()), names[0])


def _size(folder: Path, split: str) -> int:
    path = folder / "rows" / f"{split}.parquet"
    return pl.scan_parquet(path).select(pl.len()).collect().item() if path.is_file() else 0


def _write(name: str, entry: Entry, frames: Iterator[pl.DataFrame], tokenizing: Tokenizing, folder: Path) -> dict:
    """Write the tokens of a source; an item is a document whose sentences are prompt and answer of each variant."""
    writer, variants = Writer(folder, tokenizing.rows), 2 if entry.kind == "parallel" else 1
    rows = left_out = items = unknown = 0
    for frame in frames:
        rows += len(frame)
        made = list(_parts(entry, _of_language(entry, frame), tokenizing.auto))
        kept = [parts for parts in made if all(answer.strip() for _, answer in parts)]
        left_out += len(made) - len(kept)
        texts = list(chain.from_iterable(chain.from_iterable(kept)))
        found = tokenizing(texts, special=entry.form == "chat") if texts else []
        ids = np.fromiter(chain.from_iterable(found), np.int64)
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        if tokenizing.unknown not in (None, tokenizing.last):
            unknown += int((ids == tokenizing.unknown).sum())
        writer.append(ids, np.zeros(len(ids), bool), lengths, np.full(len(kept), 2 * variants))
        items += len(kept)
    if not items:
        only = f" of language {entry.language}" if entry.language else ""
        raise MixtureError(f"source {name} is empty: none of {rows} rows{only} has a text; give it other data, or take "
                           f"it out")  # fmt: skip
    if unknown > UNKNOWN * writer.tokens:
        raise MixtureError(f"source {name}: the tokenizer does not know {unknown:,} of {writer.tokens:,} tokens, for "
                           f"it has no byte fallback; begin with a model whose tokenizer has one, or let "
                           f"tasks/extend_vocabulary.py give it these characters first")  # fmt: skip
    report = {"rows": rows, "without_text": left_out, "unknown_share": unknown / max(writer.tokens, 1)}
    writer.close(report=report, tokenizer=tokenizing.sha256)
    return report


def _of_language(entry: Entry, frame: pl.DataFrame) -> pl.DataFrame:
    wanted = entry.language
    if wanted is None:
        return frame
    if entry.kind == "parallel":
        return frame.filter((pl.col("source_language") == wanted) | (pl.col("target_language") == wanted))
    return frame.filter(pl.col("language") == wanted)


def _parts(entry: Entry, frame: pl.DataFrame, auto) -> Iterator[list[tuple[str, str]]]:
    """Prompt and answer of each row, for each variant."""
    for row in frame.iter_rows(named=True):
        if entry.kind == "text":
            between = "" if row.get("language") in UNSPACED else " "
            yield [("", between.join(row["sentences"]))]
        elif entry.kind == "sft":
            yield [prompted(row | {"output": row["output"] or ""}, entry.form, auto)]
        else:
            one = row["source"] or "", row.get("source_language") or "?"
            other = row["target"] or "", row.get("target_language") or "?"
            yield [_pair(entry.form, *one, *other), _pair(entry.form, *other, *one)]


def _pair(form: str, text: str, language: str, other: str, into: str) -> tuple[str, str]:
    if not text.strip() or not other.strip():
        return "", ""  # counted with what has no text
    if form == "instruct":
        asked = TRANSLATE.get(into, f"Translate into {into}:")
        return prompted({"instruction": asked, "input": text, "output": other}, "chatflow")
    return "", f"{text}\n{other}" if form == "concat" else f"<{language}> {text} <{into}> {other}"
