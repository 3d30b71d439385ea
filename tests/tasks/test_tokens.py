"""Texts become the same bytes for any number of workers, the library's ids, and words where a reader sees them."""

import json
import multiprocessing
import random
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import rjieba

import tasks.tokens as module
from tasks.datasets import corpora
from tasks.datasets._listings import Listing
from tasks.files import digest, write_json
from tasks.ingest_text import TextRejected, batches, ingest_text
from tasks.pieces import Pieces
from tasks.settings import SettingsError
from tasks.shards import Shards, Writer
from tasks.tokenizer import Vocabulary, make_tokenizer
from tasks.tokens import WorkerDied, main, tokens
from tests.tasks._memory import peak

KINDS = ("wordpiece", "bpe", "unigram")
LETTERS = [*"ab CD'12.,!?-  \t\u00a0\u3000\u0301é中文字トラ가🙂\u200b\x07\x1f½ﬁ", "[MASK]", "</s>", "<extra_id_0>"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """raw/, corpora/ and a tokenizer of each kind."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        Path("raw").mkdir()
        corpora.fetch(Path("raw"), Path(corpora.__file__), documents=300)
        ingest_text("documents", corpora.read(Path("raw")), 1000, "corpora")
        for kind in KINDS:
            make_tokenizer({"kind": kind, "vocabulary": 900, "sentinels": 2}, ["corpora"], kind)
    return home


@pytest.fixture(autouse=True)
def inside(home, monkeypatch):
    monkeypatch.chdir(home)


def plain(kind: str, texts: list[str]) -> list[list[int]]:
    """What the library says of each text; special tokens that it reads in one all the same are unknown."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{kind}/tokenizer.json")
    tokenizer.encode_special_tokens = True
    vocabulary, found = Vocabulary.open(kind), [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    return [[vocabulary.unk if row in vocabulary.special else row for row in ids] for ids in found]


def cut(kind: str, texts: list[str]) -> tuple[list[list[int]], list[list[bool]]]:
    ids, words, lengths = Pieces(kind)(texts)
    borders = np.cumsum(lengths)[:-1]
    return [part.tolist() for part in np.split(ids, borders)], [part.tolist() for part in np.split(words, borders)]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_the_librarys(kind):
    draw = random.Random(kind)
    odd = ["".join(draw.choice(LETTERS) for _ in range(draw.randint(0, 24))) for _ in range(1500)]
    texts = odd + [s for n in range(60) for s in Listing(3, n).description(("en", "zh", "ja")[n % 3])]
    found = cut(kind, texts)[0]
    assert found == plain(kind, texts)
    roles = set(Vocabulary.open(kind).special) - {Vocabulary.open(kind).unk}
    assert not roles & {row for text in found for row in text}


@pytest.mark.parametrize("kind", KINDS)
def test_words_start_where_a_reader_sees_them(kind):
    """Joined from one start to the next, the tokens are the words, cut at signs."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{kind}/tokenizer.json")
    ids, words = (part[0] for part in cut(kind, ["The boots, brand new, cost 45 dollars."]))
    starts = [place for place, word in enumerate(words) if word] + [len(ids)]
    parts = [tokenizer.decode(ids[a:b]).strip() for a, b in zip(starts, starts[1:], strict=False)]
    assert [part.replace(" ", "") for part in parts] == [
        "The",
        "boots",
        ",",
        "brand",
        "new",
        ",",
        "cost",
        "45",
        "dollars",
        ".",
    ]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_chinese_words_are_rjiebas(kind):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{kind}/tokenizer.json")
    text = "这款皮革手拿包很适合购物。"
    ids, words = (part[0] for part in cut(kind, [text]))
    starts = [place for place, word in enumerate(words) if word] + [len(ids)]
    parts = [tokenizer.decode(ids[a:b]).replace(" ", "") for a, b in zip(starts, starts[1:], strict=False)]
    if kind == "wordpiece":
        assert np.diff(starts).tolist() == [len(word) for word in rjieba.cut(text)]
    else:  # a byte-level piece may hold several characters
        assert "".join(parts) == text
        assert 4 <= len(parts) <= len(rjieba.cut(text))


def test_forgetting_words_changes_nothing(monkeypatch):
    texts = [s for n in range(50) for s in Listing(3, n).description()]
    pieces = Pieces("wordpiece")
    whole = pieces(texts)
    monkeypatch.setattr("tasks.pieces.CACHE", 5)
    parts = [pieces(texts[first : first + 20]) for first in range(0, len(texts), 20)]
    for array, *pieces_of_it in zip(whole, *parts, strict=True):
        assert np.array_equal(array, np.concatenate(pieces_of_it))


def test_portions_change_nothing(monkeypatch):
    texts = ["", *[s for n in range(20) for s in Listing(3, n).description(("en", "zh")[n % 2])], "", "long " * 99]
    whole = {kind: Pieces(kind)(texts) for kind in KINDS}
    monkeypatch.setattr("tasks.pieces.PORTION", 150)
    for kind in KINDS:
        for one, other in zip(whole[kind], Pieces(kind)(texts), strict=True):
            assert np.array_equal(one, other)
    assert [len(array) for array in Pieces("bpe")([])] == [0, 0, 0]


@pytest.mark.parametrize("change", ["no normalizer", "Han characters stay together", "another token"])
def test_tokenizers_that_join_what_others_cut_keep_the_librarys_ids(change):
    """Only BERT's own normalizer cuts Han characters apart, and an added token may reach across words."""
    from tokenizers import AddedToken, Tokenizer, normalizers

    tokenizer = Tokenizer.from_file("wordpiece/tokenizer.json")
    if change == "no normalizer":
        tokenizer.normalizer = normalizers.Lowercase()
    elif change == "another token":
        tokenizer.add_tokens([AddedToken("红色", normalized=False)])
    else:
        tokenizer.normalizer = normalizers.BertNormalizer(handle_chinese_chars=False, lowercase=False)
    Path("changed").mkdir(exist_ok=True)
    tokenizer.save("changed/tokenizer.json")
    texts = ["红色 boots", "这款皮革手拿包很适合购物。", "a红色b"]
    assert cut("changed", texts)[0] == [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def test_bytes_that_the_vocabulary_lacks_leave_the_words_in_place():
    """Without the byte 0xE4 the library drops it wherever it stands: lengths say no longer where a token begins."""
    whole = json.loads(Path("bpe/tokenizer.json").read_text())
    lost = "\u00e4"  # how the byte is written
    model = whole["model"]
    model["vocab"] = {token: row for token, row in model["vocab"].items() if lost not in token}
    model["merges"] = [pair for pair in model["merges"] if lost not in "".join(pair)]
    Path("lossy").mkdir(exist_ok=True)
    Path("lossy/tokenizer.json").write_text(json.dumps(whole))
    text = "中这款 boots"  # the first letter begins with that byte
    ids, words = (part[0] for part in cut("lossy", [text]))
    from tokenizers import Tokenizer

    encoding = Tokenizer.from_file("lossy/tokenizer.json").encode(text, add_special_tokens=False)
    assert ids == encoding.ids
    begins, place = set(), 0
    for word in rjieba.cut(text):
        begins.add(place)
        place += len(word)
    firsts = [begin for begin, _ in encoding.offsets]
    for place, (begin, word) in enumerate(zip(firsts, words, strict=True)):
        if begin < 3:
            assert word == (begin in begins and begin not in firsts[:place])


def test_one_two_and_four_workers_write_the_same_bytes(monkeypatch):
    monkeypatch.setattr(module, "JOB_ROWS", 64)
    monkeypatch.setattr(module, "WORTH", 1)  # however small the texts are
    made = {}
    for workers in (1, 2, 4):
        tokens("wordpiece", "corpora", f"tokens{workers}", workers)
        made[workers] = digest(f"tokens{workers}")
    assert made[1] == made[2] == made[4]


def test_small_texts_start_no_process(monkeypatch):
    monkeypatch.setattr(module, "ProcessPoolExecutor", None)
    tokens("wordpiece", "corpora", "alone", 4)
    monkeypatch.setattr(module, "WORTH", 1)
    with pytest.raises(TypeError):  # now it would start some
        tokens("wordpiece", "corpora", "alone", 4)


def test_a_killed_worker_is_an_error_and_leaves_nothing(monkeypatch):
    monkeypatch.setattr(module, "JOB_ROWS", 8)
    monkeypatch.setattr(module, "WORTH", 1)
    append, killed = Writer.append, []

    def kill_then_append(writer, *block):
        if not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()
        append(writer, *block)

    monkeypatch.setattr(Writer, "append", kill_then_append)
    with pytest.raises(WorkerDied, match="a worker was killed .*; nothing was written"):
        tokens("wordpiece", "corpora", "after", 2)
    assert killed[0].exitcode == -signal.SIGKILL
    assert not Path("after").exists()


CUT = """
import sys
import tasks.pieces, tasks.tokens
tasks.pieces.CACHE, tasks.pieces.PORTION, tasks.tokens.JOB_ROWS = 100_000, 100_000, 64
tasks.tokens.tokens("wordpiece", sys.argv[1], sys.argv[1] + "_cut")
"""


def test_memory_does_not_grow_with_the_texts():
    """Ten times the rows, 11 MB of text and 54,000 distinct words more: keeping either would show."""
    for name, rows in (("small", 500), ("large", 5000)):
        Path(name, "rows").mkdir(parents=True)
        text = lambda n: [f"The boots {12 * n + k}x cost {n} dollars, " + "cheap as they are " * 9 for k in range(12)]
        frame = pl.DataFrame({"sentences": [text(n) for n in range(rows)]})
        frame.write_parquet(f"{name}/rows/train.parquet", row_group_size=64)
        write_json(Path(name, "manifest.json"), {"kind": "documents", "rows": {"train": rows}, "digest": ""})
    small, large = peak(CUT, "small"), peak(CUT, "large")
    assert Shards.open("large_cut/train/text").manifest["documents"] == 5000
    assert large < small + 6


def test_every_line_is_there_once():
    tokens("bpe", "corpora", "tokens")
    for split in ("train", "heldout"):
        rows = [row for frame in batches("corpora", split) for row in frame["sentences"].to_list()]
        shards = Shards.open(f"tokens/{split}/text")
        assert len(shards) == len(rows)
        flat = [sentence for row in rows for sentence in row]
        assert [shards.sentence(place).tolist() for place in range(len(flat))] == plain("bpe", flat)
        assert np.diff(shards.documents).tolist() == [len(row) for row in rows]
        assert shards.manifest["tokenizer"] == Vocabulary.open("bpe").sha256


def test_pairs_stay_side_by_side_and_rows_without_tokens_leave_both():
    texts = [(f"red bag {n}", f"红包{n}") for n in range(60)]
    texts[7], texts[9] = ("\x07", "空"), ("nothing", "\u200b\x07")  # wordpiece drops control characters
    frame = pl.DataFrame(texts, schema=["source", "target"], orient="row").with_columns(
        source_language=pl.lit("en"), target_language=pl.lit("zh"), licence=pl.lit("MIT"), origin=pl.lit("x")
    )
    ingest_text("pairs", frame.lazy(), 100, "pairs", heldout=0.2)
    manifest = tokens("wordpiece", "pairs", "tokens_of_pairs")
    assert manifest["left_out"] == 2
    splits = manifest["splits"].values()
    assert sum(split["source"]["documents"] for split in splits) == 58
    for split in ("train", "heldout"):
        sides = [Shards.open(f"tokens_of_pairs/{split}/{side}") for side in ("source", "target")]
        assert len(sides[0]) == len(sides[1])
        number = [plain("wordpiece", [str(n)])[0] for n in range(60)]
        for place in range(len(sides[0])):
            assert any(
                sides[0].document(place)[0].tolist()[-len(n) :] == n == sides[1].document(place)[0].tolist()[-len(n) :]
                for n in number
            )


def test_command_says_how_much_it_wrote(capsys):
    main("unigram", "corpora", "out", "1")
    count = Shards.open("out/train/text").manifest["tokens"]
    assert f"train {count:,}" in capsys.readouterr().out


def test_bad_calls_are_refused(home):
    for workers in ("two", "-1"):
        with pytest.raises(SettingsError, match="workers is"):
            main("bpe", "corpora", "out2", workers)
    with pytest.raises(SettingsError, match="workers is 0"):
        tokens("bpe", "corpora", "out2", 0)
    Path("log").mkdir(exist_ok=True)
    Path("log/manifest.json").write_text("{}")
    with pytest.raises(TextRejected, match="log holds no texts"):
        tokens("bpe", "log", "out2")
    assert not Path("out2").exists()
