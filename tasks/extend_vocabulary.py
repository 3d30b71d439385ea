"""Give a language model the characters of another language: tokens of their own, rows that begin where it stands.

    python -m tasks.extend_vocabulary params.yaml:language.vocabularies zh BASE artifacts/ingest OUT

The commonest characters of the language that the tokenizer cuts into several pieces (bytes, mostly) become tokens. Into
a tokenizer of sentencepiece's kind they go as pieces, for tokens beside its model would cut the text before its spaces
are marked; into a byte-level one they go beside the model, for there a piece needs merges, which would change how other
characters are cut. How a text without these characters is cut never changes, and the extended folder loads with
AutoTokenizer and AutoModelForCausalLM. Rows: models/language/vocabulary.py.
"""

import json
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import torch

from models import build
from tasks.base import load_causal, load_tokenizer, model_of
from tasks.command import run
from tasks.files import digest, new_folder, read_json, write_json, write_text
from tasks.ingest_text import batches
from tasks.progress import progress
from tasks.settings import SettingsError, check_names, read
from tasks.tokenizer import TokenizerError

__all__ = ["extend_vocabulary", "located"]

KEYS = ("from", "data", "language", "characters", "rows", "seed")
CHARACTERS = 8076  # of Chinese-LLaMA-2, arXiv:2405.10626
ANCHORS = ("\n", "0", "a", ".", "的")  # texts whose own pieces stay what they are before a character
BYTE_LETTERS = 0x180  # letters below it stand for bytes in a byte-level tokenizer: as tokens they are misread
PROBED = 400  # texts that are cut before and after
PLACES = 64  # of the text whose logits are compared
COLUMNS = {  # kind of data -> its texts, and the column that has their language
    "documents": (("sentences", "language"),),
    "pairs": (("source", "source_language"), ("target", "target_language")),
    "instructions": (("instruction", "language"), ("input", "language"), ("output", "language")),
}


def extend_vocabulary(settings: Mapping, base: str | Path, ingested: Iterable[str | Path], out: str | Path) -> dict:
    """Write an extended model.

    Args:
        settings: {language, characters, rows: mean or random, seed}; `from` and `data` are for the pipeline.
        base: folder of a causal language model, or of the stage that made or noted it, see tasks/base.py.
        ingested: folders of texts, in which the language's characters are counted.
        out: takes model/ and report.json.

    Returns:
        The report: characters; the share of the language's letters, as often as they occur, that are one token each
        now (coverage); tokens per character of held-out text before and after; norms of the new rows over the old;
        largest difference of old logits.

    Raises:
        SettingsError: settings, or data without a text of this language.
        TokenizerError: the tokenizer has no byte fallback, so that the characters have no pieces to take a mean of; or
            it cannot be extended.
        PoisonedFolder, ValueError, OSError: the base is no such folder.
    """
    chosen = _checked(settings)
    base, ingested, language = model_of(base), [Path(folder) for folder in ingested], chosen["language"]
    old = load_tokenizer(base)
    if not old.is_fast:
        raise TokenizerError(f"{base} holds {type(old).__name__}, which has no fast form (tokenizer.json)")
    pieces, report = _wanted(old, ingested, language, chosen)
    first = max(old.get_vocab().values()) + 1
    with new_folder(out) as folder:
        new = _extended(old, list(pieces), first, folder / "model")
        model = load_causal(base, "auto").eval()
        if (rows := len(model.get_input_embeddings().weight)) < first:
            raise TokenizerError(f"{base}: the tokenizer has {first:,} ids, the model {rows:,} rows of embeddings; "
                                 f"they do not belong together")  # fmt: skip
        known = _known(ingested, language, set(pieces))
        probe = old(known, add_special_tokens=False)["input_ids"]
        if new(known, add_special_tokens=False)["input_ids"] != probe:
            raise TokenizerError("the extended tokenizer cuts text without any new character in another way; this kind "
                                 "of tokenizer cannot be extended")  # fmt: skip
        before = _logits(model, probe[:PLACES], first)
        grown = build("language", "vocabulary", rows=chosen["rows"], seed=chosen["seed"])(
            model, list(pieces.values()), first
        )
        model.save_pretrained(folder / "model")
        again = load_causal(folder / "model", "auto").eval()
        after = _logits(again, probe[:PLACES], first)
        heldout = list(islice(_texts(ingested, language, ("heldout", "dev", "train")), PROBED))
        report |= {
            "language": language,
            "way": chosen["rows"],
            "characters": len(pieces),
            "added": "".join(pieces),
            "first_id": first,
            "tokens_per_character": {"before": _rate(old, heldout), "after": _rate(new, heldout)},
            "pieces_per_character": sum(map(len, pieces.values())) / len(pieces),
            "max_difference": (after - before).abs().max().item(),
            "base": digest(base),
            **grown,
        }
        write_json(folder / "report.json", report)
    return report


def located(data: str | Sequence[str] | None, ingest: Path) -> list[Path]:
    """The folders of one or several data sets: below `ingest` where there is one of that name, else the path itself."""
    named = [data] if isinstance(data, str) else list(data or [])
    return [ingest / each if (ingest / each).is_dir() else Path(each) for each in named]


def _checked(settings: Mapping) -> dict:
    check_names(settings, KEYS, "a vocabulary")
    chosen = {"characters": CHARACTERS, "rows": "mean", "seed": 7} | dict(settings)
    if not isinstance(chosen.get("language"), str):
        raise SettingsError(f"vocabularies: language is {chosen.get('language')!r}; it is the language whose "
                            f"characters are added, such as zh")  # fmt: skip
    if not isinstance(chosen["characters"], int) or chosen["characters"] < 1:
        raise SettingsError(f"vocabularies: characters is {chosen['characters']!r}; it is a whole number from 1 on")
    build("language", "vocabulary", rows=chosen["rows"], seed=chosen["seed"])
    return chosen


def _wanted(old, ingested: list[Path], language: str, chosen: Mapping) -> tuple[dict[str, list[int]], dict]:
    """The characters to add, the commonest first, with their pieces; what was left out."""
    counts: Counter = Counter()
    with progress(None, "characters", "text") as bar:
        for text in _texts(ingested, language, ("train",)):
            counts.update(text)
            bar.update()
    counts = Counter({c: n for c, n in counts.items() if ord(c) > 127 and unicodedata.category(c)[0] in "LMNPS"})
    if not counts:
        where = ", ".join(map(str, ingested)) or "no folder at all"
        raise SettingsError(f"vocabularies: {where} has no text of language {language!r} with characters to add")
    common = sorted(counts, key=lambda c: (-counts[c], c))
    small = _byte_level(old)
    cut = _cut(old, common)
    pieces = {c: cut[c] for c in common if c in cut and (len(cut[c]) > 1 or old.unk_token_id in cut[c])}
    fit = {c: ids for c, ids in pieces.items() if not (small and ord(c) < BYTE_LETTERS)}
    chosen_ones = dict(islice(fit.items(), chosen["characters"]))
    unknown = [c for c, ids in chosen_ones.items() if old.unk_token_id is not None and old.unk_token_id in ids]
    if unknown and chosen["rows"] == "mean":
        raise TokenizerError(f"the tokenizer reads {len(unknown):,} of {len(chosen_ones):,} characters of {language} "
                             f"as {old.unk_token} (such as {', '.join(unknown[:5])}): it has no byte fallback, so they "
                             f"have no pieces to take a mean of. Begin with a model whose tokenizer has one, or set "
                             f"rows: random")  # fmt: skip
    if not chosen_ones:
        raise TokenizerError(f"the tokenizer already has all {len(counts):,} characters of {language} that occur; "
                             f"nothing is to be added, so leave the vocabulary as it is")  # fmt: skip
    whole = sum(counts[c] for c in cut if c not in pieces or c in chosen_ones)
    report = {"seen": len(counts), "had": len(cut) - len(pieces), "dropped": len(counts) - len(cut),
              "misread": len(pieces) - len(fit), "coverage": whole / sum(counts.values())}  # fmt: skip
    return chosen_ones, report


def _texts(ingested: Sequence[Path], language: str, splits: Sequence[str]) -> Iterator[str]:
    """All texts of a language in the first of these splits that a folder has."""
    for folder in ingested:
        kind = read_json(folder / "manifest.json").get("kind")
        if kind not in COLUMNS:
            raise SettingsError(f"{folder} holds {kind}; characters are counted in {', '.join(COLUMNS)}")
        split = next((name for name in splits if (folder / "rows" / f"{name}.parquet").is_file()), splits[0])
        for frame in batches(folder, split):
            for column, spoken in COLUMNS[kind]:
                texts = frame.filter(pl.col(spoken) == language)[column]
                yield from (texts.explode() if texts.dtype == pl.List else texts).drop_nulls()


def _cut(tokenizer, characters: Sequence[str]) -> dict[str, list[int]]:
    """The ids of each character within a text: without what a tokenizer puts before the first one. Characters that it
    drops (combining marks, in BERT's) are not in the answer."""
    encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]
    found: dict[str, list[int]] = {}
    for anchor in ANCHORS:
        lead = encode([anchor])[0]
        left = [c for c in characters if c not in found and c != anchor]
        if not lead or not left:
            continue
        for character, ids in zip(left, encode([anchor + c for c in left]), strict=True):
            if ids[: len(lead)] == lead and len(ids) > len(lead):
                found[character] = ids[len(lead) :]
    return found


def _byte_level(tokenizer) -> bool:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return content["model"]["type"] == "BPE" and not content["model"].get("byte_fallback")


def _extended(old, characters: list[str], first: int, folder: Path):
    """Write the tokenizer with new tokens first .. first + N - 1, and load it as anybody would.

    Raises:
        TokenizerError: it does not come back as it must.
    """
    from tokenizers import AddedToken

    folder.mkdir(parents=True)
    if _byte_level(old):
        with TemporaryDirectory() as place:  # `old` itself must stay what it is
            old.save_pretrained(place)
            new = load_tokenizer(place)
        new.add_tokens([AddedToken(c, normalized=False) for c in characters])
        new.save_pretrained(folder)
    else:
        old.save_pretrained(folder)
        content = read_json(folder / "tokenizer.json")
        _add_pieces(content, characters, first)
        write_text(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False))
        for file in folder.glob("*.model"):  # sentencepiece's own, which does not know them
            file.unlink()
    new = load_tokenizer(folder)
    wrong = [c for place, c in enumerate(characters) if new.convert_tokens_to_ids(c) != first + place]
    cut = _cut(new, characters)
    split = [c for c in characters if cut.get(c) != [new.convert_tokens_to_ids(c)]]
    texts = new.batch_decode([[first + place] for place in range(len(characters))])
    lost = [c for c, text in zip(characters, texts, strict=True) if text.strip() != c]
    if bad := wrong + split + lost:
        shutil.rmtree(folder)
        raise TokenizerError(f"the extended tokenizer does not read {len(set(bad))} of {len(characters)} characters as "
                             f"one token each, such as {', '.join(bad[:5])}; this kind of tokenizer cannot be "
                             f"extended")  # fmt: skip
    return new


def _add_pieces(content: dict, characters: list[str], first: int) -> None:
    """Put characters into a model of sentencepiece's kind or of word pieces, in place."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary |= {c: first + place for place, c in enumerate(characters)}
        return
    lowest = min(score for _, score in vocabulary)
    beside = {token["id"]: token["content"] for token in content["added_tokens"]}
    while len(vocabulary) < first:  # ids are places: tokens beside the model keep theirs
        vocabulary.append([beside.get(len(vocabulary), f"<unused_{len(vocabulary)}>"), lowest - 1000.0])
    vocabulary += [[c, lowest] for c in characters]


def _known(ingested: Sequence[Path], language: str, added: set[str]) -> str:
    """A text that has no new character: what tokenizer and model make of it must stay as it was."""
    texts = islice(_texts(ingested, language, ("train",)), PROBED)
    return " ".join(["0123456789", *("".join(c for c in text if c not in added) for text in texts)])


@torch.no_grad()
def _logits(model, ids: list[int], columns: int) -> torch.Tensor:
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[..., :columns].float()


def _rate(tokenizer, texts: Sequence[str]) -> float:
    """Tokens per character."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return sum(map(len, ids)) / max(1, sum(map(len, texts)))


def main(address: str, name: str, base: str, ingest: str, out: str) -> None:
    """python -m tasks.extend_vocabulary params.yaml:language.vocabularies NAME BASE INGEST OUT"""
    if name not in (entries := read(address) or {}):
        raise SettingsError(f"{address} has no {name!r}; it has: {', '.join(entries) or 'nothing'}")
    report = extend_vocabulary(entries[name], base, located(entries[name].get("data"), Path(ingest)), out)
    rate = report["tokens_per_character"]
    print(f"{out}: {report['characters']:,} characters of {report['language']}, now {report['coverage']:.2%} of the "
          f"letters are one token; {rate['before']:.2f} -> {rate['after']:.2f} tokens per character; old logits off by "
          f"{report['max_difference']:.1e}")  # fmt: skip


if __name__ == "__main__":
    run(main)
