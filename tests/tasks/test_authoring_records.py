"""Records from a catalogue: interleaved, shared out, pure, split by product, with teachers that fail in every way."""

import json
import threading
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import combinations

import _authored
import polars as pl
import pytest

from models.language.llama_e import FEATURES, missing
from tasks.authoring import records as module
from tasks.authoring._build import Builder, Short, draft_of, jobs_of, quotas
from tasks.authoring._catalogue import (
    CatalogueUnreadable,
    Product,
    lexicon_of,
    queries,
    read_catalogue,
)
from tasks.authoring._phrases import attributes, says
from tasks.authoring._seeds import read_seeds
from tasks.authoring._splits import clusters, split_products
from tasks.authoring._teacher import read_list
from tasks.authoring.filters import ALIKE, Judge, applied, fault
from tasks.authoring.grounding import Lexicon, invented
from tasks.authoring.measures import rouge_l
from tasks.authoring.records import author_records
from tasks.datasets import listings, sample
from tasks.files import digest, read_json
from tasks.settings import SettingsError
from tasks.writers._writer import Prompt, Writer, WriterRefused, open_writer, write_all

ROWS = 300
SPLITS = ("train", "dev", "test", "zero_task", "zero_category")
LAMP = Product("1", "Albora red lamp, brand new", "en", ("home", "Lamps"),
               {"brand": "Albora", "condition": "brand new", "colour": "red", "price": "12", "size": "S"})  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Records of a catalogue in two languages, with a category and a job that are never trained."""
    folder = tmp_path_factory.mktemp("authored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        chosen = {"zero": {"task": "title/query", "categories": 1}, "seed": 3}
        _authored.write_records(folder, ROWS, **chosen)
    return folder, chosen


@pytest.fixture
def parts(made):
    return {split: pl.read_parquet(made[0] / "authored" / "rows" / f"{split}.parquet") for split in SPLITS}


@pytest.fixture
def rows(parts):
    return pl.concat(parts.values()).to_dicts()


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# ---------------------------------------------------------------- what is built


def test_features_are_interleaved_and_tasks_have_their_shares(rows, made):
    assert missing((one["task"], json.loads(one["presented"]), one["requires"]) for one in rows) == {
        "presented": [], "required": [],
    }  # fmt: skip
    assert not any(one["requires"] in (shown := json.loads(one["presented"]))
                   and shown[one["requires"]] == one["output"] for one in rows)  # fmt: skip
    total, weights = len(rows), module.SHARES
    assert total == ROWS
    for task, count in Counter(one["task"] for one in rows).items():
        assert abs(count / total - weights[task] / sum(weights.values())) < 0.01
    assert {one["language"] for one in rows} == {"en", "zh"}
    report = read_json(made[0] / "authored" / "report.json")
    assert report["missing"] == {"presented": [], "required": []} and report["missing_in_train"]["required"] == [
        "query"
    ]


def test_every_record_passes_the_filters_that_it_names(rows, made):
    manifest = read_json(made[0] / "authored" / "manifest.json")
    judge = Judge(Lexicon.of(manifest["lexicon"]), set(manifest["taxonomy"]))
    for one in rows:
        draft = draft_of(one)
        assert fault(draft, judge) is None and one["provenance"]["filters_passed"] == applied(draft)
        assert "grounding" in applied(draft) or one["task"] == "qa" or one["requires"] == "category"
        if one["task"] != "qa":
            source = f"{one['instruction']}\n{one['input']}"
            assert one["requires"] == "category" or not invented(one["output"], source, judge.lexicon)


def test_twice_gives_the_same_bytes_and_another_seed_others(made):
    folder, chosen = made
    for name, more in (("again", {}), ("other", {"seed": 4})):
        author_records({"records": ROWS, "expand": 4, **chosen, **more}, folder / "cat", folder / name, folder / "w")
    same, again, other = (digest(folder / name / "rows") for name in ("authored", "again", "other"))
    assert same == again and same != other


def test_no_product_is_trained_and_asked(parts):
    products = {split: set(frame["product"].drop_nulls()) for split, frame in parts.items()}
    for split in SPLITS[1:]:
        if split != "zero_task":
            assert not products["train"] & products[split] and parts[split].height
    assert not products["train"] & products["zero_task"] and products["zero_task"]
    jobs = set(parts["zero_task"]["job"].unique())
    assert jobs <= {f"title/{each}/{shown}>query" for each in ("en", "zh") for shown in ("ad", "intent", "title")}
    assert {"title/en/title>query", "title/zh/title>query"} <= jobs
    assert not (parts["train"]["requires"] == "query").any()
    tops = parts["zero_category"]["category"].drop_nulls().str.split(" > ").list.first()
    held = set(tops.unique())
    assert held and not held & set(parts["train"]["category"].drop_nulls().str.split(" > ").list.first())
    asked = {split: set(frame["question"].drop_nulls()) for split, frame in parts.items()}
    assert not asked["train"] & (asked["dev"] | asked["test"])


def test_wordings_of_a_task_are_unlike_each_other(made):
    wordings = read_json(made[0] / "authored" / "wordings.json")
    by_task = defaultdict(list)
    for one in wordings.values():
        by_task[one["task"], one["language"]].append(one["text"])
    assert sum(one["kind"] == "templates" for one in wordings.values()) > 10
    for some in by_task.values():
        assert all(rouge_l(a, b) <= ALIKE for a, b in combinations(some, 2))
    seeds = read_seeds()
    entries = [entry[language] for entry in seeds.words["glossary"] for language in ("en", "zh")]
    questions = [question for entry in entries for question in entry["questions"]]
    assert all(rouge_l(a, b) <= ALIKE for a, b in combinations(questions, 2))


def test_provenance(rows, made):
    report, manifest = (read_json(made[0] / "authored" / f"{name}.json") for name in ("report", "manifest"))
    kinds = Counter(one["provenance"]["teacher_kind"] for one in rows)
    assert set(kinds) == {"templates", "catalogue", "glossary"}
    assert manifest["provenance"] == report["provenance"] == {kind: n / len(rows) for kind, n in sorted(kinds.items())}
    assert manifest["teacher_kind"] == "templates" and report["result"] == "template-expanded"
    seeds = {one.id for one in read_seeds().wordings}
    for one in rows:
        told = one["provenance"]
        assert set(told["seed_ids"]) <= seeds and told["seed_ids"] and told["template_id"] and told["teacher_sha"]
        assert told["teacher_name"] == one["origin"] and one["licence"] == "CC0-1.0"
        assert (told["teacher_kind"] == "templates") == one["written"] == (one["template"] is not None)


def test_a_rewritten_title_is_judged_by_another_query(rows):
    titles = [one for one in rows if one["requires"] == "title" and one["query"]]
    assert titles and all(one["heldout_query"] not in (None, one["query"]) for one in titles)
    assert all(one["heldout_query"] not in one["input"].splitlines() for one in titles)


# ---------------------------------------------------------------- seeds, catalogue, splits


def test_seeds_are_ours_in_two_languages_and_checked(tmp_path):
    seeds = read_seeds()
    assert len(seeds.wordings) >= 60 and seeds.languages == ["en", "zh"]
    both = [(one.task, one.presents, one.requires) for one in seeds.wordings]
    assert missing(both) == {"presented": [], "required": []}
    for changed, words in (
        ({"presents": ["title"], "requires": "title"}, "only a query makes it another one"),
        ({"presents": ["query"], "requires": "query"}, "asks for what it shows"),
        ({"presents": ["attributes"], "requires": "brand"}, "among the attributes"),
        ({"presents": ["colour"]}, "a task or feature that there is not"),
        ({"text": "Sell it in {city}."}, "slots that nothing fills: city"),
        ({"id": "ads-en-1"}, "two seeds have one id"),
    ):
        one = {"id": "x", "task": "ads", "language": "en", "presents": ["title"], "requires": "ad", "text": "Sell."}
        (tmp_path / "more.yaml").write_text(json.dumps({"seeds": [one | changed]}))
        with pytest.raises(SettingsError, match=words):
            read_seeds([str(tmp_path / "more.yaml")])
    with pytest.raises(SettingsError, match="no seeds at"):
        read_seeds(["absent.yaml"])


def test_a_third_language_is_a_file(tmp_path):
    names = {"title": "タイトル", "attributes": "属性", "category": "カテゴリ", "brand": "ブランド",
             "condition": "状態", "size": "サイズ", "colour": "色", "material": "素材", "price": "価格"}  # fmt: skip
    seed = {"id": "class-ja-1", "task": "classification", "language": "ja", "presents": ["title"],
            "requires": "category", "text": "この商品のカテゴリはどれですか。"}  # fmt: skip
    more = {"seeds": [seed], "names": {"ja": names}, "money": {"ja": "{}ドル"}}
    (tmp_path / "ja.yaml").write_text(json.dumps(more))
    catalogue = _authored.write_catalogue(tmp_path / "c", 60, language="ja")
    chosen = {"records": 12, "shares": {"classification": 1}, "seeds": [str(tmp_path / "ja.yaml")], "expand": 0}
    author_records(chosen, catalogue, tmp_path / "out", tmp_path / "w")
    rows = pl.concat([pl.read_parquet(file) for file in (tmp_path / "out" / "rows").glob("*")])
    assert rows.height == 12 and set(rows["language"]) == {"ja"} and all(" > " in text for text in rows["output"])
    with pytest.raises(SettingsError, match="the seeds are in en, zh, and no product"):
        author_records({}, catalogue, tmp_path / "out", tmp_path / "w")


def test_a_log_is_a_catalogue_and_tells_only_what_many_did(tmp_path):
    sample.fetch(tmp_path, __import__("pathlib").Path(sample.__file__), rows=6000)
    events = sample.read(tmp_path).collect()
    row = events.filter(pl.col("c0_name").is_not_null() & pl.col("brand_name").is_not_null()).row(0, named=True)
    first = {"c0_name": "A", "c1_name": "B", "c2_name": "C", "event_id": "item_like"}
    second = first | {"c2_name": "D"}
    few = [row | place | {"user_id": user, "item_id": 900 + user} for user in range(4) for place in (first, second)]
    more = few + [row | place | {"user_id": 9, "item_id": 909} for place in (first, second)]
    for name, extra in (("few", few), ("more", more)):
        folder = tmp_path / name / "events" / "bucket=0"
        folder.mkdir(parents=True)
        pl.concat([events, pl.DataFrame(extra, schema=events.schema)]).write_parquet(folder / "part.parquet")
    products = read_catalogue(tmp_path / "few", most=300)
    assert len(products) == 300 and len({one.id for one in products}) == 300
    assert all(one.title and one.category and one.language == "en" and set(one.facts) <= {
        "brand", "condition", "size", "colour", "price"} for one in products)  # fmt: skip
    told = {name: {one.path: one.related for one in read_catalogue(tmp_path / name)} for name in ("few", "more")}
    assert told["few"]["A > B > C"] == () and told["more"]["A > B > C"] == ("A > B > D",)  # four users are too few


def test_made_up_listings_are_a_catalogue_in_several_languages(tmp_path):
    products = read_catalogue(_authored.write_catalogue(tmp_path, 60))
    assert {one.language for one in products} == {"en", "zh"} and 50 < len(products) <= 60
    for one in products:
        assert {"brand", "condition", "colour", "material", "use", "price"} <= set(one.facts) and len(one.category) == 2
        assert one.facts["colour"] in one.title and one.facts["brand"] in one.title and one.facts["price"].isdigit()
        assert ("size" in one.facts) == (one.category[0] in ("shoes", "鞋子", "sports", "运动用品"))
    with pytest.raises(listings.ListingError, match="with answer catalogue it is one of en, zh, ja"):
        listings.fetch(tmp_path, tmp_path, answer="catalogue", language="en+fr")


def test_catalogues_that_are_none(tmp_path):
    with pytest.raises(CatalogueUnreadable, match="neither rows/train.parquet nor events"):
        read_catalogue(tmp_path)
    (tmp_path / "rows").mkdir()
    pl.DataFrame({"text": ["a"], "second": ["no facts"], "label": ["x"]}).write_parquet(tmp_path / "rows/train.parquet")
    with pytest.raises(CatalogueUnreadable, match="answer: catalogue"):
        read_catalogue(tmp_path)


def test_like_titles_are_one_cluster_and_one_split():
    titles = ["Albora red leather boots, brand new", "albora red leather boots brand new!", "Canova green tent, used"]
    assert clusters(titles, 0.8) == [0, 0, 2] and clusters(titles, 1.0) == [0, 0, 2]
    assert (
        clusters(["red leather boots size 42", "red leather boots size 43", "red leather boots size 53"], 0.8)
        == [0] * 3
    )
    products = [Product(str(n), f"{titles[n % 3]} {n // 3 % 40}", "en", (f"top {n % 4}",)) for n in range(240)]
    splits, cluster = split_products(products, 0.7, {"dev": 20, "test": 20}, 1, seed=1)
    assert len({(cluster[one.id], splits[one.id]) for one in products}) == len(set(cluster.values()))
    alone = [Product(str(n), f"{n * 7919:x} {n * 104729:b}", "en", (f"top {n % 4}",)) for n in range(200)]
    splits, _ = split_products(alone, 0.9, {"dev": 20, "test": 20}, 1, seed=1)
    held = {one.category[0] for one in alone if splits[one.id] == "zero_category"}
    assert len(held) == 1 and held.isdisjoint(one.category[0] for one in alone if splits[one.id] != "zero_category")
    assert Counter(splits.values()).keys() == {"train", "dev", "test", "zero_category"}


def test_words_of_a_product():
    seeds = read_seeds()
    assert attributes(LAMP, seeds) == "condition: brand new; size: S; colour: red; price: 12 dollars"
    assert attributes(LAMP, seeds, LAMP.title) == "condition: brand new; colour: red"  # its title says no S
    assert queries(LAMP)[:3] == ["Albora lamps", "red lamps", "lamps home"]
    assert not says("shoes", "S") and says("size S.", "s") and says("红色鞋", "红色")
    assert lexicon_of([LAMP]).words["brand"]["albora"] == "albora"
    assert read_list('Here you are:\n1. Sell it.\n2) "Buy it."\n') == ["Sell it.", "Buy it."]
    assert read_list("Sell it.\nBuy it.") == ["Sell it.", "Buy it."]


def test_quotas_are_exact():
    assert quotas(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert sum(quotas(997, {"a": 3, "b": 0.5, "c": 2}).values()) == 997


# ---------------------------------------------------------------- teachers that fail


LETTERS = str.maketrans("0123456789/", "abcdefghij ")


class Garbage(Writer):
    """Every third text is fit, the others are wrong in one way each."""

    teacher, licence, batch = "garbage@0123456789ab", "MIT", 8
    wrong = ("", "ok", "As an AI language model I cannot.", "这是一段中文的文字，不是英文，所以不应该出现在这里。",
             "Write to me@shop.example soon, please",
             "Only $999999 today for this lovely piece", "\x00\x01" * 400)  # fmt: skip

    def __init__(self, share=3):
        self.asked, self.share = 0, share

    def write(self, prompts):
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt):
        self.asked += 1
        if self.asked % self.share == 0:
            text = f"A lovely piece that you will enjoy for years{prompt.fields['for_occasion']}: {prompt.key}"
            return text.translate(LETTERS)
        return self.wrong[self.asked % len(self.wrong)]


def build(tmp_path, writer, chosen, monkeypatch):
    monkeypatch.setattr(module, "open_teacher", lambda *_: writer)
    catalogue = tmp_path / "c" / "cat"
    if not catalogue.exists():
        _authored.write_catalogue(tmp_path / "c", 120, language="en")
    told = {"shares": {"ads": 1}, "records": 30, "expand": 0, **chosen}
    return author_records(told, catalogue, tmp_path / "out", tmp_path / "w")


def test_garbage_is_dropped_and_counted(tmp_path, monkeypatch):
    report = build(tmp_path, Garbage(), {"rounds": 9}, monkeypatch)
    assert report["rows"]["train"] + report["rows"]["dev"] + report["rows"]["test"] == 30
    assert {"empty", "length", "words", "language", "personal", "grounding"} <= set(report["dropped"])
    assert report["drafts"] >= 30 + sum(report["dropped"].values())
    assert report["provenance"] == {"templates": 1.0} and report["teacher"] == "garbage@0123456789ab"


def test_garbage_for_wordings_is_dropped_and_counted(tmp_path, monkeypatch):
    replies = (
        "",
        "ok",
        "1. Draw an image of it.\n2. As an AI I cannot sell this.",
        "1. Turn this listing title into a short promotional text\n2. {city} is nice to be",
        "1. Announce what the seller has to give away",
    )
    monkeypatch.setattr(Garbage, "wrong", replies)
    monkeypatch.setattr(module, "_records", lambda *_: [])
    monkeypatch.setattr(module, "_report", lambda *_: {"rows": {}, "provenance": {}, "dropped": {}, "missing": {}})
    found = build(tmp_path, Garbage(share=10**9), {"expand": 5}, monkeypatch)["wordings"]
    wanted = {"too short or too long", "asks for more than words", "talk of a machine", "alike"}
    assert set(found["dropped"]) >= wanted | {"a slot that nothing fills"}
    assert found["kept"] >= 1 and found["asked"] == found["kept"] + sum(found["dropped"].values())


def test_a_teacher_of_nothing_but_garbage_ends_with_the_reasons(tmp_path, monkeypatch):
    with pytest.raises(Short, match=r"ads in en: 30 records are lacking after \d+ drafts .*dropped: \d+ "):
        build(tmp_path, Garbage(share=10**9), {"rounds": 2}, monkeypatch)
    assert not (tmp_path / "out").exists() and (tmp_path / "w" / "texts.jsonl").read_text()  # what it wrote is kept


class Tired(Writer):
    """Gives no answer any more after so many texts."""

    teacher, licence, batch = "tired@0123456789ab", "MIT", 4

    def __init__(self, until):
        self.left = self.asked = until

    def write(self, prompts):
        if self.left < len(prompts):
            raise ConnectionError("no answer in 4 tries: timed out")
        self.left -= len(prompts)
        return [f"A lovely piece{prompt.fields['for_occasion']}: {prompt.key}".translate(LETTERS) for prompt in prompts]


def test_a_teacher_that_times_out_loses_nothing(tmp_path, monkeypatch):
    with pytest.raises(ConnectionError, match="timed out"):
        build(tmp_path, Tired(12), {}, monkeypatch)
    kept = (tmp_path / "w" / "texts.jsonl").read_text().splitlines()
    assert 8 <= len(kept) <= 12 and not (tmp_path / "out").exists()
    rest = Tired(10**6)
    build(tmp_path, rest, {}, monkeypatch)
    whole = len((tmp_path / "w" / "texts.jsonl").read_text().splitlines())
    assert rest.asked - rest.left == whole - len(kept)  # nothing is asked twice


def test_an_address_that_nobody_answers(tmp_path):
    catalogue = _authored.write_catalogue(tmp_path, 60, language="en")
    address = {
        "address": "http://127.0.0.1:9/v1",
        "model": "m",
        "licence": "x",
        "tries": 2,
        "wait": 0.01,
        "timeout": 0.2,
    }
    with pytest.raises(ConnectionError, match="gave no answer to prompt wording/.* in 2 tries"):
        author_records({"writer": {"endpoint": address}, "records": 10}, catalogue, tmp_path / "out", tmp_path / "w")
    assert not (tmp_path / "out").exists()


def test_an_address_that_talks_nonsense(tmp_path):
    class Nonsense(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            """Says nothing."""

    server = HTTPServer(("127.0.0.1", 0), Nonsense)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    catalogue = _authored.write_catalogue(tmp_path, 60, language="en")
    address = {"address": f"http://127.0.0.1:{server.server_port}/v1", "model": "m", "licence": "x"}
    try:
        with pytest.raises(WriterRefused, match="does not speak the chat protocol"):
            author_records({"writer": {"endpoint": address}, "records": 10}, catalogue, tmp_path / "o", tmp_path / "w")
    finally:
        server.shutdown()


# ---------------------------------------------------------------- replies from elsewhere


def test_recorded_replies_make_the_same_set(made, tmp_path, monkeypatch):
    folder, chosen = made
    lines = (folder / "written" / "texts.jsonl").read_text() + (folder / "written" / "wordings.jsonl").read_text()
    (tmp_path / "all.jsonl").write_text(lines)
    writer = {"recorded": {"file": str(tmp_path / "all.jsonl"), "licence": "CC0-1.0"}}
    told = {"records": ROWS, "expand": 4, **chosen, "writer": writer}
    report = author_records(told, folder / "cat", tmp_path / "out", tmp_path / "w")
    assert report["teacher_kind"] == "recorded" and report["teacher"].startswith("templates@")
    assert set(report["provenance"]) == {"recorded", "catalogue", "glossary"}
    ours, theirs = (pl.concat([pl.read_parquet(place / "rows" / f"{split}.parquet") for split in SPLITS])
                    for place in (folder / "authored", tmp_path / "out"))  # fmt: skip
    assert ours["output"].to_list() == theirs["output"].to_list()


def test_recorded_replies_that_are_none(tmp_path):
    file = tmp_path / "r.jsonl"
    prompts = [Prompt("a", "Sell."), Prompt("b", "Buy.")]

    class Once(Writer):
        teacher, licence = "once", "MIT"

        def write(self, prompts):
            return [prompt.text.lower() for prompt in prompts]

    write_all(Once(), prompts[:1], "1", file)
    writer = open_writer({"recorded": {"file": str(file), "licence": "MIT"}})
    assert writer.write(prompts[:1]) == ["sell."] and writer.teacher.startswith("once recorded@")
    with pytest.raises(WriterRefused, match="no reply to 1 of 2 prompts, such as b"):
        writer.write(prompts)
    with pytest.raises(WriterRefused, match="no reply to 1 of 1"):
        writer.write([Prompt("a", "Another wording.")])
    with open(file, "a") as lines:
        lines.write('{"key": "b"}\n')
    with pytest.raises(SettingsError, match="line 2: a record has key, prompt, text and teacher"):
        open_writer({"recorded": {"file": str(file), "licence": "MIT"}})
    with pytest.raises(SettingsError, match="is no file"):
        open_writer({"recorded": {"file": "absent", "licence": "MIT"}})
    file.write_text("")
    with pytest.raises(SettingsError, match="replies of 0 teachers"):
        open_writer({"recorded": {"file": str(file), "licence": "MIT"}})


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("chosen", "error", "words"),
    [
        ({"record": 3}, LookupError, "closest: records"),
        ({"shares": {"adds": 1}}, LookupError, "closest: ads"),
        ({"shares": {"ads": -1}}, SettingsError, "must be >= 0"),
        ({"records": 0, "similar": 2}, SettingsError, "records must be.*; similar must be"),
        ({"split": {"dev": 60, "test": 50}}, SettingsError, "together below 100"),
        ({"zero": {"task": "sing"}}, SettingsError, "one of ads, title"),
        ({"languages": ["fr"]}, SettingsError, "in fr; there are in en, zh"),
        ({"writer": {"templates": {"seeds": 3}}}, SettingsError, "no setting seeds"),
        ({"writer": {"tempates": {}}}, SettingsError, "closest: templates"),
    ],
)
def test_settings_that_cannot_be(made, tmp_path, chosen, error, words):
    with pytest.raises(error, match=words):
        author_records(chosen, made[0] / "cat", tmp_path / "out", tmp_path / "w")


def test_a_catalogue_that_is_too_small_says_which_job(tmp_path):
    catalogue = _authored.write_catalogue(tmp_path, 12, language="en")
    with pytest.raises(Short, match=r"classification in en: \d+ records are lacking .* twice.*take a larger catalogue"):
        author_records(
            {"records": 400, "expand": 0, "shares": {"classification": 1, "ads": 0.1}},
            catalogue,
            tmp_path / "out",
            tmp_path / "w",
        )


def test_jobs_that_no_product_fits_are_left_out():
    seeds, bare = read_seeds(), Product("1", "red lamp", "en", ("Lamps",), {})
    builder = Builder(seeds, [bare], {"1": "train"}, lambda prompts: [], ("templates", "t"), "c", 2, 1)
    possible = {job.name for job in jobs_of(seeds.wordings) if builder.possible(job)}
    assert "classification/en/title>category" in possible and "classification/en/title>brand" not in possible
    assert not any("attributes" in name or name.startswith("ads/zh") for name in possible)
    assert set(FEATURES) > {"brand", "attributes"}
