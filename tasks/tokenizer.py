"""A tokenizer for the corpora: trained on them, or taken from elsewhere; one folder that AutoTokenizer loads.

    wordpiece   words cut at spaces and punctuation, every CJK character a word of its own (BERT)
    bpe         byte-level, so no text is unknown (GPT-2)
    unigram     pieces of the likeliest segmentation, spaces kept as a sign (T5)
    pretrained  a folder of transformers, a vocab.txt of BERT, a vocab.json with merges.txt of GPT-2, a sentencepiece
                .model: converted, never changed

Training twice gives the same bytes. The `tokenizers` library numbers what it meets in the order of a hash table that
differs from run to run, so the alphabet is counted and sorted here and handed to it; characters too rare for it become
[UNK]. Unigram pieces come from sentencepiece, which sorts.
"""

import io
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import polars as pl

from tasks.base import load_tokenizer
from tasks.command import run
from tasks.files import digest, new_folder, read_json, write_json
from tasks.ingest_text import STREAMS, sentences
from tasks.poison import refuse_poison
from tasks.progress import counted
from tasks.settings import SettingsError, read

__all__ = [
    "TokenizerError", "Vocabulary", "check_vocabulary", "copy_tokenizer", "make_tokenizer", "tokenizer_files", "train",
]  # fmt: skip

KINDS = ("wordpiece", "bpe", "unigram")
ROLES = {
    "pad": "[PAD]",
    "unk": "[UNK]",
    "cls": "[CLS]",
    "sep": "[SEP]",
    "mask": "[MASK]",
    "bos": "<s>",
    "eos": "</s>",
}  # of a trained tokenizer, in the order of ids
SETTINGS = {"vocabulary": (int, 1), "sentinels": (int, 0), "minimum": (int, 1), "lowercase": (bool, False)}  # least
SENTINEL = re.compile(r"<extra_id_(\d+)>")
KNOWN = {  # what the bare vocabularies of others call their roles; the first that is there
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>", "<|endoftext|>"),
    "cls": ("[CLS]",),
    "sep": ("[SEP]",),
    "mask": ("[MASK]", "<mask>"),
    "bos": ("<s>", "<|endoftext|>"),
    "eos": ("</s>", "<|endoftext|>"),
}
NEVER = -1000.0  # score of a special token: no segmentation of a text chooses it
PADDED = 128  # a checkpoint's table may have this many rows more than the tokenizer, to a multiple of 8


class TokenizerError(ValueError):
    """A tokenizer cannot be made, cannot be read, or is not the one that a checkpoint was trained with."""


@dataclass(frozen=True)
class Vocabulary:
    """What processors know of a tokenizer: its size, and the ids of its special tokens by role or None."""

    size: int  # rows that a table of embeddings needs: the largest id + 1
    pad: int | None
    unk: int | None
    cls: int | None
    sep: int | None
    mask: int | None
    bos: int | None
    eos: int | None
    sentinels: tuple[int, ...]  # <extra_id_0>, <extra_id_1>, ...
    special: tuple[int, ...]  # all ids that stand for no text, ascending
    sha256: str  # of tokenizer.json

    @classmethod
    def open(cls, folder: str | Path) -> "Vocabulary":
        """Read tokenizer.json and tokenizer_config.json of a folder in the layout of transformers.

        Raises:
            TokenizerError: the folder has no tokenizer.json.
        """
        folder = Path(folder)
        if not (folder / "tokenizer.json").is_file():
            raise TokenizerError(f"{folder} has no tokenizer.json; `python -m tasks.tokenizer` writes such a folder")
        content, named = read_json(folder / "tokenizer.json"), {}
        for file in ("special_tokens_map.json", "tokenizer_config.json"):
            named |= read_json(folder / file) if (folder / file).is_file() else {}
        vocabulary, added = content["model"]["vocab"], content["added_tokens"]
        if isinstance(vocabulary, list):  # unigram: pieces with their scores, in the order of ids
            vocabulary = {piece: row for row, (piece, _) in enumerate(vocabulary)}
        ids = vocabulary | {token["content"]: token["id"] for token in added}
        roles = {role: ids.get(_content(named.get(f"{role}_token"))) for role in ROLES}
        found = {int(match[1]): row for token, row in ids.items() if (match := SENTINEL.fullmatch(token))}
        sentinels = tuple(found[number] for number in sorted(found))
        special = {token["id"] for token in added if token["special"]} | set(sentinels)
        special |= {row for row in roles.values() if row is not None}
        size = max(ids.values()) + 1
        return cls(
            size, **roles, sentinels=sentinels, special=tuple(sorted(special)), sha256=digest(folder / "tokenizer.json")
        )

    @property
    def start(self) -> int | None:
        """What a text begins with: <s>, or [CLS] where there is none."""
        return self.cls if self.bos is None else self.bos

    @property
    def end(self) -> int | None:
        """What a text ends with: </s>, or [SEP] where there is none."""
        return self.sep if self.eos is None else self.eos

    @property
    def filler(self) -> int:
        """An id for padding, which the mask hides: [PAD], or 0 where there is none."""
        return self.pad or 0

    def need(self, *roles: str, sentinels: int = 0) -> None:
        """Refuse a tokenizer without these roles ("mask", "start", ...) or with fewer sentinels.

        Raises:
            TokenizerError: names all that is missing.
        """
        missing = [role for role in roles if getattr(self, role) is None]
        if len(self.sentinels) < sentinels:
            missing.append(f"{sentinels} sentinels (it has {len(self.sentinels)})")
        if missing:
            raise TokenizerError(
                f"the tokenizer has no {', '.join(missing)}; train one with them (language.tokenizer in params.yaml)"
            )


def check_vocabulary(folder: str | Path, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer, when a checkpoint's table of embeddings with so many rows can be its own.

    The table may be padded: up to 127 rows more, to a multiple of 8.

    Raises:
        TokenizerError: the two do not match.
    """
    vocabulary = Vocabulary.open(folder)
    surplus = rows - vocabulary.size
    if surplus and not (0 < surplus < PADDED and rows % 8 == 0):
        raise TokenizerError(
            f"the tokenizer in {folder} has {vocabulary.size:,} ids, the checkpoint {rows:,} rows of embeddings: they "
            "do not belong together; take the tokenizer that the checkpoint was trained with"
        )
    return vocabulary


def make_tokenizer(settings: dict, ingested: Iterable[str | Path], out: str | Path) -> Vocabulary:
    """Write the folder of a tokenizer: tokenizer.json, tokenizer_config.json, special_tokens_map.json, manifest.json.

    Args:
        settings: `kind` with what else `train` takes, or `pretrained`, a path; `data` is for the pipeline.
        ingested: folders of `tasks.ingest`; their training rows are trained on.
        out: the folder to replace.

    Raises:
        SettingsError: the settings have neither form.
        TokenizerError: nothing to train on, or files that are no tokenizer.
    """
    if not isinstance(settings, Mapping):
        raise SettingsError(f"language.tokenizer is {settings!r}; it needs kind and vocabulary, or pretrained, a path")
    given = {key: value for key, value in settings.items() if key != "data"}
    ingested = [Path(folder) for folder in ingested]
    if "pretrained" in given:
        if extra := sorted(set(given) - {"pretrained", "lowercase"}):
            raise SettingsError(f"a pretrained tokenizer is taken as it is; remove {', '.join(extra)}")
        if not isinstance(given["pretrained"], str) or not given["pretrained"]:
            raise SettingsError(f"language.tokenizer.pretrained is {given['pretrained']!r}; it must be a path")
        _check_types(given)
        tokenizer, roles = _taken(Path(given["pretrained"]), given.get("lowercase"))
    else:
        if unknown := sorted(set(given) - {"kind", "vocabulary", "lowercase", "sentinels", "minimum"}):
            accepted = "kind, vocabulary, lowercase, sentinels, minimum, or pretrained alone"
            raise SettingsError(
                f"language.tokenizer has unknown settings: {', '.join(unknown)}; it accepts: {accepted}"
            )
        if missing := [key for key in ("kind", "vocabulary") if key not in given]:
            raise SettingsError(f"language.tokenizer lacks {', '.join(missing)}; or give `pretrained`, a path")
        _check_types(given)
        tokenizer = train(lambda: _texts(ingested), **given)
        roles = ROLES
    with new_folder(out) as folder:
        _save(tokenizer, roles, folder)
        vocabulary = Vocabulary.open(folder)
        trained_on = [{"name": p.name, "digest": read_json(p / "manifest.json")["digest"]} for p in ingested]
        facts = {"sha256": vocabulary.sha256, "size": vocabulary.size, "settings": given}
        write_json(folder / "manifest.json", {**facts, "data": [] if "pretrained" in given else trained_on})
    return vocabulary


def tokenizer_files(folder: str | Path) -> list[Path]:
    """The files of a tokenizer in a folder that may be a model's too, whose weights and settings are left out."""
    others = ("config.json", "recipe.json", "manifest.json")
    found = sorted(Path(folder).iterdir())
    return [file for file in found if file.is_file() and file.suffix != ".safetensors" and file.name not in others]


def copy_tokenizer(folder: str | Path, out: str | Path, embedding: Mapping) -> None:
    """Put a tokenizer beside a model, and what the model takes into its tokenizer_config.json.

    Args:
        folder: the tokenizer's, or of a model that has it.
        out: the model's, which exists.
        embedding: of the model's recipe. Several kinds of segments: a pair's tokens say which text they are of
            (token_type_ids). Learned positions: no text is longer than their table.
    """
    for file in tokenizer_files(folder):
        shutil.copy(file, Path(out) / file.name)
    path = Path(out) / "tokenizer_config.json"
    config = read_json(path) if path.is_file() else {}
    segments = (embedding.get("segment") or {}).get("kinds", 1) > 1
    config["model_input_names"] = ["input_ids", *(["token_type_ids"] if segments else []), "attention_mask"]
    if "length" in (position := embedding.get("position") or {}):
        config["model_max_length"] = position["length"] - position.get("start", 0)
    write_json(path, config)


def train(
    texts: Callable[[], Iterable[str]],
    kind: str,
    vocabulary: int,
    lowercase: bool = False,
    sentinels: int = 0,
    minimum: int = 2,
):
    """Train a `tokenizers.Tokenizer`; it adds no special tokens of its own to a text but those of its template.

    Args:
        texts: gives the texts, each time it is called.
        kind: wordpiece, bpe or unigram.
        vocabulary: ids at most, special tokens included.
        lowercase: for texts whose case says nothing; accents go too with wordpiece.
        sentinels: how many <extra_id_N> it gets, which T5's spans need.
        minimum: a pair of pieces is joined when it occurs as often; unigram has no such limit.

    Raises:
        TokenizerError: no text, or a vocabulary smaller than special tokens and characters.
        SettingsError: an unknown kind.
    """
    if kind not in KINDS:
        raise SettingsError(f"language.tokenizer.kind is {kind!r}; it is one of {', '.join(KINDS)}")
    special = [*ROLES.values(), *(f"<extra_id_{number}>" for number in range(sentinels))]
    room = vocabulary - len(special) - (256 if kind == "bpe" else 16)
    if room <= 0:
        raise TokenizerError(
            f"a vocabulary of {vocabulary} has no room beside {len(special)} special tokens; enlarge it"
        )
    make = {"wordpiece": _wordpiece, "bpe": _bpe, "unigram": _unigram}[kind]
    tokenizer = make(texts, vocabulary, lowercase, special, minimum)
    tokenizer.add_special_tokens(special)
    _add_template(tokenizer, kind)
    return tokenizer


def _texts(ingested: Iterable[Path]) -> Iterator[str]:
    """The training texts, with a bar that counts them: every kind but bpe reads them twice."""
    for folder in ingested:
        yield from counted(sentences(folder, "train"), f"texts of {folder.name}", "text", _size(folder))


def _size(folder: Path) -> int:
    """How many texts `sentences` gives."""
    rows, found = pl.scan_parquet(folder / "rows/train.parquet"), []
    schema = rows.collect_schema()
    for column in chain.from_iterable(STREAMS[read_json(folder / "manifest.json")["kind"]].values()):
        texts = pl.col(column).explode() if schema[column] == pl.List else pl.col(column)
        found.append(rows.select((texts.drop_nulls() != "").sum()).collect(engine="streaming").item())
    return sum(found)


def _check_types(given: Mapping) -> None:
    """Refuse settings that are no numbers where numbers are needed, and so on; all at once."""
    wrong = []
    for key in SETTINGS.keys() & given.keys():
        (kind, least), value = SETTINGS[key], given[key]
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind) or value < least:
            wanted = "true or false" if kind is bool else f"a whole number from {least} on"
            wrong.append(f"{key} is {value!r}; it must be {wanted}")
    if wrong:
        raise SettingsError(f"language.tokenizer: {', '.join(sorted(wrong))}")


def _wordpiece(texts, vocabulary: int, lowercase: bool, special: list[str], minimum: int):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    def fresh(model):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        return tokenizer

    first = fresh(models.WordPiece(unk_token=ROLES["unk"]))
    alphabet = _alphabet(texts, first.normalizer.normalize_str, (vocabulary - len(special)) // 3)
    inner = [f"##{letter}" for letter in alphabet if _joins(letter)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocabulary, min_frequency=minimum, special_tokens=special + inner, show_progress=False
    )
    first.train_from_iterator(_kept(texts, first.normalizer.normalize_str, alphabet), trainer)
    # a new one, for the pieces of words that stood among the special tokens are none
    return fresh(models.WordPiece(first.get_vocab(), unk_token=ROLES["unk"]))


def _bpe(texts, vocabulary: int, lowercase: bool, special: list[str], minimum: int):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    given = iter(texts())
    _refuse_nothing(first := next(given, None))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase() if lowercase else None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=minimum,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain([first], given), trainer)
    return tokenizer


def _unigram(texts, vocabulary: int, lowercase: bool, special: list[str], minimum: int):
    """Trained by sentencepiece: `tokenizers` adds its expected counts in an order that differs from run to run."""
    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    steps = [normalizers.NFKC(), *([normalizers.Lowercase()] if lowercase else [])]
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    cleaner = normalizers.Sequence(steps)
    alphabet = _alphabet(texts, cleaner.normalize_str, (vocabulary - len(special)) // 2)
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_kept(texts, cleaner.normalize_str, alphabet),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocabulary - len(special) + 1,  # its own unknown piece is left out below
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="identity",
            bos_id=-1,
            eos_id=-1,
            num_threads=1,
            max_sentence_length=1 << 20,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise TokenizerError(f"sentencepiece cannot train on these texts: {error}") from None
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [(model.id_to_piece(row), model.get_score(row)) for row in range(1, len(model))]
    named = [(token, NEVER) for token in special]
    tokenizer = Tokenizer(models.Unigram(named + pieces, unk_id=special.index(ROLES["unk"])))
    tokenizer.normalizer = cleaner
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _alphabet(texts, clean: Callable[[str], str], most: int) -> list[str]:
    """The commonest characters of the cleaned texts, in the order of code points."""
    counts = Counter()
    for text in texts():
        counts.update(clean(text))
    _refuse_nothing(counts or None)
    common = sorted(counts, key=lambda letter: (-counts[letter], letter))[:most]
    return sorted(letter for letter in common if not letter.isspace())


def _refuse_nothing(found) -> None:
    if not found:
        raise TokenizerError("no text to train a tokenizer on: the ingested data have no training rows")


def _kept(texts, clean: Callable[[str], str], alphabet: list[str]) -> Iterator[str]:
    """Cleaned texts with a space for each character outside the alphabet."""

    class Table(dict):
        def __missing__(self, key: int) -> str:
            return " "

    table = Table({ord(letter): letter for letter in alphabet})
    return (clean(text).translate(table) for text in texts())


def _joins(letter: str) -> bool:
    """Whether a character can stand inside a word: BERT cuts around punctuation and CJK ideographs."""
    if unicodedata.category(letter)[0] == "P" or (letter.isascii() and not letter.isalnum()):
        return False
    return not unicodedata.name(letter, "").startswith("CJK ")


def _add_template(tokenizer, kind: str) -> None:
    """What AutoTokenizer puts around a text: [CLS] and [SEP] with wordpiece, else <s> and </s>."""
    from tokenizers import processors

    left, right = (ROLES["cls"], ROLES["sep"]) if kind == "wordpiece" else (ROLES["bos"], ROLES["eos"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{left} $A {right}",
        pair=f"{left} $A {right} $B:1 {right}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (left, right)],
    )


def _save(tokenizer, roles: dict[str, str], folder: Path) -> None:
    """Write a `tokenizers.Tokenizer` with its roles, or a tokenizer of transformers as it is."""
    if not hasattr(tokenizer, "save_pretrained"):
        from transformers import PreTrainedTokenizerFast

        named = {f"{role}_token": token for role, token in roles.items()}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    tokenizer.save_pretrained(folder)
    names = {key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    write_json(folder / "special_tokens_map.json", names)


def _taken(path: Path, lowercase: bool | None):
    """A tokenizer made by others, and its roles."""
    if not path.exists():
        raise FileNotFoundError(f"language.tokenizer.pretrained is {path}, which does not exist")
    folder = path if path.is_dir() else path.parent
    there = {file.name for file in folder.iterdir()} if path.is_dir() else {path.name}
    if lowercase is not None and "vocab.txt" not in there:
        raise SettingsError(
            f"language.tokenizer.lowercase is for a vocab.txt, which does not say it; remove it for {path}"
        )
    if {"tokenizer.json", "tokenizer_config.json"} & there and path.is_dir():
        return _of_transformers(folder), {}
    model = next((name for name in sorted(there) if name.endswith(".model")), None)
    if "vocab.txt" in there:
        tokenizer = _bert(folder / "vocab.txt", lowercase)
    elif "vocab.json" in there and (folder / "merges.txt").is_file():
        tokenizer = _gpt2(folder / "vocab.json", folder / "merges.txt")
    elif model:
        tokenizer = _sentencepiece(folder / model)
    else:
        raise TokenizerError(
            f"{path} is no tokenizer: it needs tokenizer.json, vocab.txt, vocab.json with merges.txt, or a .model; "
            f"it has {', '.join(sorted(there)[:5]) or 'nothing'}"
        )
    roles = {
        role: next((t for t in known if tokenizer.token_to_id(t) is not None), None) for role, known in KNOWN.items()
    }
    roles = {role: token for role, token in roles.items() if token}
    tokenizer.add_special_tokens(sorted(set(roles.values()), key=tokenizer.token_to_id))
    if {"cls", "sep"} <= roles.keys():
        _add_template(tokenizer, "wordpiece")
    return tokenizer, roles


def _of_transformers(folder: Path):
    refuse_poison(folder)
    try:
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, KeyError) as error:
        raise TokenizerError(f"transformers cannot load a tokenizer from {folder}: {error}") from None
    if not tokenizer.is_fast:
        raise TokenizerError(f"{folder} holds {type(tokenizer).__name__}, which has no fast form (tokenizer.json)")
    return tokenizer


def _bert(file: Path, lowercase: bool | None):
    """vocab.txt, one piece a line; lower case when no piece has a capital, unless it is said."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pieces = file.read_text(encoding="utf-8").split("\n")
    pieces = pieces[:-1] if not pieces[-1] else pieces
    if twice := [piece for piece, count in Counter(pieces).items() if count > 1]:
        raise TokenizerError(f"{file} has {len(twice)} pieces twice, e.g. {twice[0]!r}: their ids would move")
    plain = [piece for piece in pieces if not re.fullmatch(r"\[.*\]", piece)]
    lower = not any(piece != piece.lower() for piece in plain) if lowercase is None else lowercase
    tokenizer = Tokenizer(models.WordPiece({piece: row for row, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _gpt2(vocabulary: Path, merges: Path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(file: Path):
    """A sentencepiece model as transformers converts it; control symbols become special tokens."""
    from types import SimpleNamespace

    from transformers.convert_slow_tokenizer import SpmConverter

    try:
        return SpmConverter(SimpleNamespace(vocab_file=str(file), add_prefix_space=True, legacy=False)).converted()
    except Exception as error:  # protobuf's own errors are of no common class
        raise TokenizerError(f"{file} is no sentencepiece model: {error}") from None


def _content(token) -> str | None:
    """tokenizer_config.json names a token, or describes it."""
    return token["content"] if isinstance(token, dict) else token


def main(address: str, out: str, *ingested: str) -> None:
    """python -m tasks.tokenizer params.yaml:language.tokenizer artifacts/tokenizer artifacts/ingest/corpora [...]"""
    settings = read(address)
    vocabulary = make_tokenizer(settings, ingested, out)
    source = settings.get("pretrained") or f"{settings['kind']} of {', '.join(Path(p).name for p in ingested)}"
    print(f"{out}: {vocabulary.size:,} ids, {len(vocabulary.special)} of them special; {source}")


if __name__ == "__main__":
    run(main)
