"""Texts of teachers as data: reading, examples, reasons; what is written, what is counted, real data where it is."""

import _tuned
import polars as pl
import pytest

from models import build
from tasks import generate_examples, generate_reading, generate_reasons
from tasks.files import digest, read_json
from tasks.finetune import finetune
from tasks.generate_examples import generate_examples as examples
from tasks.generate_reading import generate_reading as reading
from tasks.generate_reasons import generate_reasons as reasons
from tasks.ingest_text import TextRejected, ingest_text
from tasks.kinds._kind import Rejected
from tasks.settings import SettingsError
from tasks.tokenizer import make_tokenizer
from tasks.tokens import tokens

READS = "Entities: {text}\nQuestion: What is said of {text}?\nAnswer: {text}"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tasks.slots.FOLDER", tmp_path / "slots")


# ---------------------------------------------------------------- reading


@pytest.fixture
def corpus(tmp_path):
    """30 documents of 3 sentences, one of which all of them share."""
    made = [{"sentences": [f"The lamp number {n} is red and old.", f"It costs {n} dollars in this shop.",
                           "Every lamp is sold as it is, here."], "language": "en", "licence": "CC0-1.0",
             "source": "shop.txt"} for n in range(30)]  # fmt: skip
    pl.DataFrame(made).write_parquet(tmp_path / "raw.parquet")
    ingest_text("documents", pl.scan_parquet(tmp_path / "raw.parquet"), 1000, tmp_path / "corpus", 0.2)
    return tmp_path / "corpus"


def read(corpus, out, method="reading", patterns=READS, **more):
    chosen = {"method": method, "writer": {"templates": {"patterns": patterns}}, "texts": 20, "heldout": 0.2, **more}
    return reading(chosen, corpus, out, out.parent / "written.jsonl")


def test_reading_becomes_a_corpus_that_reads_back(corpus, tmp_path):
    before = digest(corpus)
    report = read(corpus, out := tmp_path / "out", {"reading": {"plain": 0.5}})
    assert digest(corpus) == before and {file.name for file in out.iterdir()} == {
        "reading", "records.parquet", "report.json",
    }  # fmt: skip
    assert (report["asked"], report["kept"], report["dropped"]) == (20, 20, {})
    assert report["passed_over"]["a text twice"] > 0  # the sentence that all documents share is read once
    documents = pl.concat([pl.read_parquet(out / f"reading/rows/{split}.parquet") for split in ("train", "heldout")])
    framed = documents.filter(pl.col("source").str.starts_with("templates@"))
    assert len(framed) == 20 and set(framed["licence"]) == {"CC0-1.0"}
    way, records = build("distill.texts", "reading"), pl.read_parquet(out / "records.parquet")
    known = {row["text"]: row for row in records.to_dicts()}
    for lines in framed["sentences"].to_list():
        text, values = way.read(lines)
        row = known.pop(text)
        assert (values["Question"], values["Answer"]) == (row["question"], row["answer"])
        assert list(values["Entities"]) == row["entities"] and row["version"] == "reading-1"
    assert not known
    letters = lambda frame: frame["sentences"].list.join("").str.len_chars().sum()
    plain = documents.filter(pl.col("source") == "shop.txt")
    assert report["phases"] == {"reading": {"framed": 20, "plain": len(plain)}}
    assert letters(plain) == pytest.approx(letters(framed) / 2, rel=0.1)


def test_its_documents_are_cut_into_tokens(corpus, tmp_path):
    read(corpus, tmp_path / "out")
    make_tokenizer({"kind": "wordpiece", "vocabulary": 120}, [tmp_path / "out/reading"], tmp_path / "tokenizer")
    assert tokens(tmp_path / "tokenizer", tmp_path / "out/reading", tmp_path / "tokens")["left_out"] == 0


def test_two_phases_of_comprehension(corpus, tmp_path):
    pattern = "Entities: none\nSummary: {text}\nQuestion: Which lamp in {text}?\nAnswer: this one"
    report = read(corpus, tmp_path / "out", {"comprehension": {"plain": 0.0}}, pattern)
    assert report["phases"] == {"comprehend": {"framed": 20, "plain": 0}, "answer": {"framed": 20, "plain": 0}}
    answers = pl.read_parquet(tmp_path / "out/answer/rows/train.parquet")["sentences"].to_list()
    assert all(lines[1].startswith("Question: ") and lines[2] == "Answer: this one" for lines in answers)


def test_what_the_filter_drops_is_counted(corpus, tmp_path):
    patterns = [READS, "no frame at all", READS.replace("Entities: {text}", "Entities: Atlantis"), READS[:-6]]
    report = read(corpus, tmp_path / "out", patterns=patterns)
    assert report["asked"] == 20 == report["kept"] + sum(report["dropped"].values())
    assert set(report["dropped"]) == {"another form", "an entity is not in the text", "no answer"}
    assert report == read_json(tmp_path / "out/report.json")
    with pytest.raises(TextRejected, match="of 20 texts none is left: {'another form': 20}"):
        read(corpus, tmp_path / "none", patterns="nothing")
    assert not (tmp_path / "none").exists()


def test_a_stopped_reading_goes_on(corpus, tmp_path, monkeypatch):
    read(corpus, tmp_path / "out")
    written = tmp_path / "written.jsonl"
    lines = written.read_text().splitlines(keepends=True)
    written.write_text("".join(lines[:7]))
    before, asked = digest(tmp_path / "out"), []
    from tasks.writers.templates import Templates

    real = Templates.write
    monkeypatch.setattr(Templates, "write", lambda self, prompts: asked.extend(prompts) or real(self, prompts))
    read(corpus, tmp_path / "out")
    assert len(asked) == 13 and digest(tmp_path / "out") == before


def test_reading_refuses(corpus, tmp_path):
    for chosen, words in (
        ({"method": "read", "writer": {}}, "reading, comprehension"),
        ({"method": "reading", "writer": {"templates": {"patterns": "x"}}, "texts": 0}, "whole number >= 1"),
        ({"method": {"reading": {"shortest": 500}}, "writer": {"templates": {"patterns": "x"}}}, "no text of 500"),
        ({"method": "reading", "wrriter": {}}, "writer"),
    ):
        with pytest.raises((SettingsError, LookupError, TextRejected), match=words):
            reading(chosen, corpus, tmp_path / "out", tmp_path / "written.jsonl")


# ---------------------------------------------------------------- examples


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """bert/, rows/ of category, and classifier/ tuned on them."""
    root = tmp_path_factory.mktemp("examples")
    (root / "bert").mkdir()
    _tuned.write_model(root / "bert", "bert")
    _tuned.write_examples(root / "rows", "category")
    chosen = {"kind": "classification", "length": 32, "training": {"epochs": 12, "batch": 32, "lr": 5.0e-3}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr("tasks.slots.FOLDER", root / "slots")
        finetune("category", chosen, root / "rows", root / "bert", root / "classifier", None)
    return root


def test_examples_become_labelled_rows(tuned, tmp_path):
    writer = {"templates": {"patterns": ['- "{example} like new, number {number}"', "{example}", ""]}}
    report = examples({"writer": writer, "each": 12, "length": 32}, tuned / "rows", tuned / "classifier",
                      tmp_path / "out", tmp_path / "written.jsonl")  # fmt: skip
    train, gold = (pl.read_parquet(root / "rows/train.parquet") for root in (tmp_path / "out", tuned / "rows"))
    assert report["asked"] == 12 * gold["label"].n_unique() == report["kept"] + sum(report["dropped"].values())
    assert set(report["dropped"]) == {"empty", "in train", "a text twice"}
    new = train.filter(pl.col("origin") != "gold")
    assert len(train) == len(gold) + report["kept"] and train[: len(gold)]["text"].equals(gold["text"])
    assert new["text"].str.contains("like new, number").all() and not new["text"].str.contains('"').any()
    assert set(new["label"]) <= set(gold["label"]) and new["probability"].is_between(0, 1).all()
    assert report["agree"] == pytest.approx((new["label"] == new["asked"]).mean())
    assert set(new["licence"]) == {"CC0-1.0"} and new["version"].unique().to_list() == ["examples-1"]
    for split in ("dev", "test"):
        held = pl.read_parquet(tmp_path / f"out/rows/{split}.parquet")
        assert held.drop("origin").equals(pl.read_parquet(tuned / f"rows/rows/{split}.parquet"))
        assert not set(held["text"]) & set(new["text"])


def test_a_small_student_learns_gold_and_written_texts(tuned, tmp_path):
    from tasks.distill_tasks import distill_tasks

    writer = {"templates": {"patterns": "{example} like new, number {number}"}}
    examples({"writer": writer, "each": 5, "length": 32}, tuned / "rows", tuned / "classifier",
             tmp_path / "data/both", tmp_path / "written.jsonl")  # fmt: skip
    tasks = {"category": {"data": "both", "kind": "classification", "teachers": ["classifier"]}}
    student = {"recipe": "lstm", "size": "nano", "overrides": {"width": 16, "encoder": {"gru": {"layers": 1}}}}
    chosen = {"method": "generation", "tasks": tasks, "length": 32, "student": student, "training": {"steps": 4}}
    metrics = distill_tasks("small", chosen, tuned / "bert", tmp_path / "data", tuned, tmp_path / "out", None)
    assert metrics["export"]["category"]["equal"] and metrics["dev"]["category"]["loss"] > 0


def test_unsure_and_unusable_examples(tuned, tmp_path):
    writer = {"templates": {"patterns": "{example} like new, number {number}"}}
    go = lambda **more: examples({"writer": writer, "each": 5, "length": 32} | more, tuned / "rows",
                                 tuned / "classifier", tmp_path / "out", tmp_path / "written.jsonl")  # fmt: skip
    sure = go(sure=0.9)
    assert sure["dropped"].get("the classifier is unsure", 0) == go()["kept"] - sure["kept"]
    with pytest.raises(Rejected, match="none is left: {'too long'"):
        go(longest=3)
    with pytest.raises(SettingsError, match="each 0"):
        go(each=0)
    with pytest.raises(Rejected, match="classifier|has no head"):
        examples({"writer": writer}, tuned / "rows", tuned / "bert", tmp_path / "x", tmp_path / "w.jsonl")


# ---------------------------------------------------------------- reasons


def pairs(root, rows=24):
    made = [{"text": f"lamp {n % 6}", "second": f"a red lamp of {n} watts", "label": str(n % 2),
             "split": "dev" if n % 6 == 5 else "train"} for n in range(rows)]  # fmt: skip
    _tuned.write_rows(root, pl.DataFrame(made))
    return root


SAYS = {"0": "unlike", "1": "alike"}
REASON = "Reasoning: Both speak of a {first}. So they are {word}.\n**Verdict:** {word}"


def reason(root, out, patterns=REASON, **more):
    chosen = {"writer": {"templates": {"patterns": patterns}}, "says": SAYS, **more}
    return reasons(chosen, root, out, out.parent / "written.jsonl")


def test_reasons_stand_beside_their_pairs(tmp_path):
    data = pairs(tmp_path / "data")
    report = reason(data, tmp_path / "out")
    train = pl.read_parquet(tmp_path / "out/rows/train.parquet")
    gold = pl.read_parquet(data / "rows/train.parquet")
    assert train.select(gold.columns).equals(gold) and report["kept"] == len(gold) and report["agree"] == 1.0
    assert train["reason"].to_list() == [f"Both speak of a {text}." for text in gold["text"]]  # no verdict left
    assert pl.read_parquet(tmp_path / "out/rows/dev.parquet").equals(pl.read_parquet(data / "rows/dev.parquet"))
    assert set(train["version"]) == {"reasons-1"} and set(train["teacher_licence"]) == {"CC0-1.0"}


def test_reasons_for_another_label_and_without_one(tmp_path):
    data = pairs(tmp_path / "data")
    patterns = [REASON, REASON.replace("{word}", "alike"), "I cannot say.", "Verdict: {word}"]
    kept = reason(data, tmp_path / "out", patterns)
    train = pl.read_parquet(tmp_path / "out/rows/train.parquet")
    assert set(kept["dropped"]) == {"argues for another label", "no verdict", "no reason beside the verdict"}
    assert len(train) == kept["asked"] == 20 and train["reason"].null_count() == 20 - kept["kept"]
    taught = reason(data, tmp_path / "taught", patterns, gold=False)
    rows = pl.read_parquet(tmp_path / "taught/rows/train.parquet")
    assert len(rows) == 20 - taught["dropped"]["no verdict"] and rows["label"].is_in(["0", "1"]).all()
    assert "argues for another label" not in taught["dropped"]
    assert (rows["label"] == "1").sum() > (pl.read_parquet(data / "rows/train.parquet")["label"] == "1").sum() * 0.5
    for more, words in (({"says": {"0": "x"}}, "a word of its own for each label"),
                        ({"says": {"0": "x", "1": "X"}}, "a word of its own"), ({"sayss": {}}, "says")):  # fmt: skip
        with pytest.raises((SettingsError, LookupError), match=words):
            reason(data, tmp_path / "x", **more)
    with pytest.raises(Rejected, match="none is left"):
        reason(data, tmp_path / "x", "nothing", gold=False)


def test_verdicts_are_read_as_models_write_them():
    says = {"0": "irrelevant", "1": "relevant"}
    told = lambda text: generate_reasons._read(text, says)
    assert told("The query asks for a chair. Verdict: Irrelevant") == ("0", "The query asks for a chair.")
    assert told("It is a chair; it is relevant. It has arms.\n\n**Verdict**: relevant.") == ("1", "It has arms.")
    assert told("It may fit.")[0] is None and told("verdict - RELEVANT, surely")[0] == "1"


def test_as_commands(corpus, tuned, tmp_path, capsys):
    import yaml

    entries = {
        "readings": {"method": "reading", "writer": {"templates": {"patterns": READS}}, "texts": 9, "heldout": 0.3},
        "examples": {"writer": {"templates": {"patterns": "{example} again {number}"}}, "each": 2, "length": 32},
        "reasons": {"writer": {"templates": {"patterns": REASON}}, "says": SAYS},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"distill": {key: {"a": e} for key, e in entries.items()}}))
    address, out = "params.yaml:distill.{}.a", lambda name: (str(tmp_path / name), str(tmp_path / f"{name}.jsonl"))
    generate_reading.main(address.format("readings"), str(corpus), *out("read"))
    generate_examples.main(address.format("examples"), str(tuned / "rows"), str(tuned / "classifier"), *out("made"))
    generate_reasons.main(address.format("reasons"), str(pairs(tmp_path / "pairs")), *out("why"))
    told = capsys.readouterr().out
    assert all(word in told for word in ("read 9 texts, 9 kept", "wrote", "reasoned about 20 pairs, 20 kept"))


def test_on_real_pairs_and_queries(shared_data, tmp_path):
    """Product pairs and shop queries go through; without them, made-up ones of the same form."""
    folder = shared_data and shared_data / "instruct"
    if folder and (folder / "product_matching").is_dir() and (folder / "wands_queries").is_dir():
        frames = {split: pl.read_parquet(folder / f"product_matching/walmart-amazon/{name}.parquet").head(40)
                  for split, name in (("train", "train"), ("dev", "valid"))}  # fmt: skip
        queries = pl.read_parquet(folder / "wands_queries/query.parquet").drop_nulls().head(60)
    else:
        item = lambda n: {"left": f"COL title VAL lamp {n}", "right": f"COL title VAL lamp {n // 2}", "label": n % 2}
        frames = {split: pl.DataFrame([item(n) for n in range(40)]) for split in ("train", "dev")}
        queries = pl.DataFrame({"query": [f"lamp {n}" for n in range(60)], "query_class": ["Lamps", "Chairs"] * 30})
    for split, frame in frames.items():
        named = frame.select(text="left", second="right", label=pl.col("label").cast(pl.String), split=pl.lit(split))
        _tuned.write_rows(tmp_path / "products", named)
    pattern = "One is {first}. The other is {second}. So {word}.\nVerdict: {word}"
    report = reason(tmp_path / "products", tmp_path / "why", pattern)
    assert report["asked"] == 40 and report["agree"] == 1.0 and report["kept"] > 0
    train = pl.read_parquet(tmp_path / "why/rows/train.parquet")
    assert not train["reason"].drop_nulls().str.contains(r"\b(alike|unlike)\b").any()
    split = pl.when(pl.int_range(pl.len()) < 50).then(pl.lit("train")).otherwise(pl.lit("dev"))
    named = queries.select(text=pl.lit("a search"), second="query", label="query_class", split=split)
    _tuned.write_rows(tmp_path / "queries", named)
    told = reasons({"writer": {"templates": {"patterns": "The words tell what is sought.\nVerdict: {word}"}}},
                   tmp_path / "queries", tmp_path / "sought", tmp_path / "sought.jsonl")  # fmt: skip
    assert told["asked"] == 50 and told["agree"] == 1.0
