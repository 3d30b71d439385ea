"""Invented facts, filters and measures of authored texts, by hand."""

import math

import pytest

from tasks.authoring.filters import FILTERS, Draft, Judge, applied, fault, kept_wordings, wording_fault
from tasks.authoring.grounding import KINDS, Invention, Lexicon, invented, rates
from tasks.authoring.measures import (
    BM25,
    classified,
    corpus_bleu,
    kept_facts,
    overlap_at_k,
    retrieval_gain,
    rouge_l,
    terms_found,
    words,
)  # fmt: skip
from tasks.diversity import distinct, self_bleu

LEXICON = Lexicon.of({
    "brand": ["Albora", "Canova", "Rose"], "condition": ["brand new", "like new", "well used", "Good"],
    "colour": ["black", "Gold"], "size": ["42", "S", "One size"], "material": ["leather", "rose"],
})  # fmt: skip
SOURCE = "Title: Albora black leather boots, brand new\nAttributes: size: 42; price: 45 dollars"


def kinds(text: str, source: str = SOURCE) -> list[tuple[str, str]]:
    return [(one.kind, one.text) for one in invented(text, source, LEXICON)]


# ---------------------------------------------------------------- grounding


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Albora black leather boots, brand new, size 42, for 45 dollars!", []),
        ("Canova boots", [("brand", "Canova")]),
        ("As good as Nike", [("brand", "Nike")]),
        ("Boots made by Zorbo", [("brand", "Zorbo")]),
        ("Now only $20", [("price", "$20")]),
        ("It costs 30 dollars", [("price", "costs 30")]),
        ("for $45.00", []),
        ("Half price, free shipping", [("price", "Half price"), ("price", "free shipping")]),
        ("20% off", [("price", "20% off")]),
        ("boots, like new", [("condition", "like new")]),
        ("never worn", []),  # new, in other words
        ("well used boots", [("condition", "well used")]),
        ("a new look, good for you", []),  # no condition is stated
        ("in size 43", [("size", "size 43")]),
        ("Size: M", [("size", "Size: M")]),
        ("One size fits all", [("size", "One size")]),
        ("red boots", [("colour", "red")]),
        ("gold buckles", [("colour", "gold")]),
        ("covered steps", []),  # the letters of red are no colour
        ("suede boots", [("material", "suede")]),
        ("worn 3 times", [("number", "3")]),
        ("Come from Monday on, by Christmas", []),
        ("全新黑色皮革靴子，45美元，尺码42", []),
        ("红色靴子，九折包邮", [("colour", "红色"), ("price", "九折"), ("price", "包邮")]),
        ("口红一样的红", []),  # one character says no colour
        ("耐克几乎全新", [("brand", "耐克"), ("condition", "几乎全新")]),
        ("", []),
    ],
)
def test_invented_facts_are_caught(text, wanted):
    assert kinds(text) == wanted


def test_a_fact_of_another_word_or_language_is_grounded():
    assert kinds("黑色", "black bag") == [] and kinds("black", "黑色的包") == [] and kinds("grey", "gray") == []
    assert kinds("1,200 dollars", "price: 1200") == [] and kinds("12.5 cm", "12,5") == []
    assert kinds("1200 dollars", "price: 120") == [("price", "1200 dollars")]


def test_a_brand_that_is_a_plain_word_is_not_looked_for():
    assert "rose" not in LEXICON.words["brand"] and "albora" in LEXICON.words["brand"]
    assert "s" not in LEXICON.words["size"] and LEXICON.words["colour"]["黑色"] == "black"


def test_rates_count_texts_not_faults():
    found = rates([[Invention("price", "$2", 0), Invention("price", "$3", 9)], [Invention("brand", "X", 0)], [], []])
    assert found["invented"] == 0.5 and found["invented_price"] == 0.25 and found["invented_size"] == 0.0
    assert set(found) == {"invented", *(f"invented_{kind}" for kind in KINDS)} and rates([])["invented"] == 0.0


# ---------------------------------------------------------------- filters

JUDGE = Judge(LEXICON, {"shoes > boots"})
AD = {"task": "ads", "requires": "ad", "language": "en", "instruction": "Advertise it.", "input": SOURCE,
      "output": "Treat yourself to Albora black leather boots."}  # fmt: skip
TITLE = {"task": "title", "requires": "title", "language": "en", "instruction": "Rewrite it.",
         "input": "Title: Albora boots\nQuery: winter boots", "output": "winter Albora boots",
         "presented": {"title": "Albora boots", "query": "winter boots"}, "title": "Albora boots", "brand": "Albora",
         "query": "winter boots"}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, None),
        ({"output": "Buy."}, "length"),
        ({"output": "x" * 601}, "length"),
        ({"output": "这双靴子非常好看，快来买吧，非常适合你。这双靴子非常好看。"}, "language"),
        ({"output": "As an AI language model I cannot sell boots."}, "words"),
        ({"output": "Dear [insert name], buy these lovely boots."}, "words"),
        ({"output": "These are fucking good boots, buy them."}, "words"),
        ({"output": "Write to boots@shop.example for the lovely boots."}, "personal"),
        ({"output": "Call 555-123-4567-89 for these lovely boots."}, "personal"),
        ({"output": "See https://x.example for these lovely boots"}, "personal"),
        ({"output": "Treat yourself to red Albora boots today."}, "grounding"),
        ({"occasion": "Christmas"}, "occasion"),
        ({"occasion": "Christmas", "output": "The gift for christmas: Albora boots."}, None),
    ],
)
def test_filters_of_an_advertisement(changed, wanted):
    assert fault(Draft(**AD | changed), JUDGE) == wanted


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        ({}, None),
        ({"output": "Albora boots"}, "changed"),
        ({"output": "Albora boots for cold days"}, "query"),
        ({"output": "winter boots"}, "facts"),
        ({"output": "winter Albora boots 2024"}, "grounding"),
    ],
)
def test_filters_of_a_title(changed, wanted):
    assert fault(Draft(**TITLE | changed), JUDGE) == wanted
    assert {"changed", "query", "facts", "grounding"} <= set(applied(Draft(**TITLE | changed)))


def test_a_category_is_one_of_the_taxonomy():
    draft = Draft("classification", "category", "en", "Which category?", "boots", "shoes > boots", written=False)
    assert fault(draft, JUDGE) is None and applied(draft) == ["personal", "legal"]
    wrong = Draft("classification", "category", "en", "Which category?", "boots", "shoes", written=False)
    assert fault(wrong, JUDGE) == "legal"
    assert list(FILTERS)[:2] == ["length", "language"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Sell this lovely thing for {occasion}.", None),
        ("Sell it", "too short or too long"),
        ("word " * 151, "too short or too long"),
        ("Sell this thing in {city} now.", "a slot that nothing fills"),
        ("Describe the image of the product here.", "asks for more than words"),
        ("As an AI I can sell things.", "talk of a machine"),
        ("- sell this lovely thing now", "another language, or it begins with a sign"),
        ("把这件好东西卖出去 sell it now", "another language, or it begins with a sign"),
        ("Write a program that sells things.", "a program"),
    ],
)
def test_wordings(text, wanted):
    assert wording_fault(text, ("occasion",), "en") == wanted


def test_wordings_in_chinese_count_characters():
    assert (
        wording_fault("推销它", (), "zh") == "too short or too long" and wording_fault("推销这件商品", (), "zh") is None
    )
    assert wording_fault("Sell this thing here", (), "zh") is not None


def test_wordings_that_are_alike_are_one():
    kept = ["Write an ad for the product below"]
    new = ["Write an ad for the item below", "Say who buys this", "Say who would buy this", "Say who buys it"]
    assert kept_wordings(kept, new) == [False, True, True, False]  # F1 12 / 14, -, 6 / 9 is below 0.7, 6 / 8


# ---------------------------------------------------------------- measures


def test_words_of_three_scripts():
    assert words("Red Bag_2, 红包 ブ") == ["red", "bag", "2", "红", "包", "ブ"] and words("...") == []


def test_rouge_l_by_hand():
    # Longest common subsequence a c of 3 and 4 words: P = 2 / 3, R = 2 / 4, F = 4 / 7.
    assert rouge_l("a b c", "a x c y") == pytest.approx(4 / 7)
    assert rouge_l("红色包", "红色的包") == pytest.approx(6 / 7)
    assert rouge_l("", "a") == 0 and rouge_l("a", "") == 0 and rouge_l("a", "a") == 1


def test_bleu_by_hand():
    # Precisions 4/5, 2/4, 1/3 and none of 2 (smoothed to 1/4): their geometric mean; as long as the reference.
    found = corpus_bleu(["the cat sat on mats"], ["the cat sat in mats"])
    assert found == pytest.approx((4 / 5 * 2 / 4 * 1 / 3 * 1 / 4) ** 0.25, rel=1e-4)
    assert (
        corpus_bleu([], []) == 0 and corpus_bleu([""], ["a b"]) == 0 and corpus_bleu(["a"], ["a"]) == pytest.approx(1)
    )
    # three words of four: what is missing is punished by exp(1 - 4 / 3)
    assert corpus_bleu(["a b c"], ["a b c d"]) == pytest.approx(math.exp(-1 / 3), rel=1e-4)


def test_variety_by_hand():
    assert distinct(["x b x b", "x"], 1) == pytest.approx(2 / 5) and distinct(["x b x b", "x"], 2) == pytest.approx(
        2 / 3
    )
    assert math.isnan(distinct([""], 1)) and math.isnan(distinct(["x"], 2))
    assert self_bleu(["x b c d", "x b c d"]) == pytest.approx(1) and self_bleu(["x", "x"]) == pytest.approx(1)
    assert math.isnan(self_bleu(["x"])) and math.isnan(self_bleu(["", ""])) and self_bleu(["x", "b"]) < 0.6


def test_kept_facts_and_terms():
    assert kept_facts("Sony WH-1000 headset, 2 cables", "Sony headset, 2 cables", "Sony") == pytest.approx(2 / 3)
    assert kept_facts("a plain title", "another") == 1 and kept_facts("Albora鞋 42", "Albora 鞋 42", "Albora") == 1
    assert terms_found("red shoes", "Shoes, red!") == 1 and terms_found("red shoes", "shoes") == 0.5
    assert terms_found("", "x") == 1 and terms_found("red", "") == 0
    assert overlap_at_k("Boots and totes", ["Shoes > Boots", "Bags > Clutch", "Bags > Totes", "x"], 3) == 2 / 3
    assert overlap_at_k("x", []) == 0


def test_bm25_by_hand():
    # One of three documents has the word, all are two words long: idf = ln(1 + 2.5 / 1.5), tf part 2.2 / 2.2.
    index = BM25(["red shoes", "blue bag", "blue tent"])
    assert index.score("red", index.counts[0]) == pytest.approx(math.log(1 + 2.5 / 1.5))
    assert index.rank("red", 0) == 1 and index.rank("blue", 1) == 2  # a tie counts against
    assert index.rank("green", 0) == 3  # nothing is found: last
    found = retrieval_gain(index, ["red bag"], [1], ["red blue bag"])
    assert found["before"] == 0.5 and found["after"] == 1 and found["gain"] == 0.5


def test_categories_by_hand():
    found = classified(["a > x", "a > y", "b", "?"], ["a > x", "a > x", "b > z", "b > z"])
    assert found["accuracy_1"] == 0.75 and found["accuracy_2"] == 0.25
    assert found["macro_f1_1"] == pytest.approx((1 + 2 / 3) / 2)  # a: 1; b: said once of twice
    assert found["macro_f1_2"] == pytest.approx((2 / 3 + 0) / 2)
    # common nodes 2 + 1 + 1 + 0, said 2 + 2 + 1 + 1, right 2 each
    assert found["hierarchical_f1"] == pytest.approx(2 * 4 / (6 + 8))
    assert classified([], [])["hierarchical_f1"] == 0
