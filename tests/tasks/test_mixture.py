"""Mixtures: rows that are a function of their number, whole pairs, and sources that end or are empty."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import polars as pl
import pytest
import torch
from _bilingual import SOURCES, byte_tokenizer, ingested
from transformers import AutoTokenizer

from tasks.mixed_samples import prompted
from tasks.mixture import Exhausted, MixtureError, open_mixture
from tasks.settings import SettingsError

LENGTH = 192


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = ingested(tmp_path_factory.mktemp("mixture"))
    byte_tokenizer(folder, folder / "tokenizer")
    return folder


def sources(place, **more) -> dict:
    return {name: entry | {"data": place / entry["data"]} | more.get(name, {}) for name, entry in SOURCES.items()}


def opened(place, sampler=None, length=LENGTH, seed=3, only=None, heldout=False, cache=None, **more):
    chosen = {name: entry for name, entry in sources(place, **more).items() if only is None or name in only}
    settings = {"grow": 300} if sampler is None else sampler
    return open_mixture(chosen, settings, place / "tokenizer", length, seed, heldout=heldout, cache=cache)


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def documents(batch):
    """(source, ids, labels) of each piece."""
    for row in range(len(batch["ids"])):
        real = batch["mask"][row]
        for number in range(int(batch["documents"][row][real].max()) + 1):
            chosen = real & (batch["documents"][row] == number)
            yield (
                int(batch["sources"][row][chosen][0]),
                batch["ids"][row][chosen].tolist(),
                batch["labels_lm"][row][chosen].tolist(),
            )


OPENED = []  # what a forked worker finds: it must not start the threads of polars again


def _rows(numbers):
    return {name: value.numpy() for name, value in OPENED[0].rows(numbers).items()}


def test_a_row_is_a_function_of_its_number(place):
    one = opened(place)
    whole = {number: one.rows([number]) for number in (0, 1, 255, 256, 257, 700)}
    other = opened(place)
    for number in (700, 256, 0, 257, 255, 1):  # in another order, by another mixture
        assert same(other.rows([number]), whole[number])
    assert not same(opened(place, seed=4).rows([0]), whole[0])
    OPENED[:] = [opened(place)]
    with ProcessPoolExecutor(4, mp_context=get_context("fork")) as pool:  # by workers, in portions
        portions = [(0, 1), (255, 256), (1,), (700,)]
        for numbers, found in zip(portions, pool.map(_rows, portions, timeout=30), strict=True):
            assert same({name: torch.from_numpy(value) for name, value in found.items()}, one.rows(numbers))


@pytest.mark.parametrize("stop", [0, 5, 101, 256, 300])
def test_the_next_thousand_samples_after_a_stop(place, stop):
    """Rows end within samples, so every stop is one in the middle of a text; a new mixture goes on token for token."""
    whole = opened(place).rows(range(stop, stop + 400))
    again = opened(place)
    parts = [again.rows(range(first, first + 100)) for first in range(stop, stop + 400, 100)]
    kept = torch.cat([part["ids"][part["mask"]] for part in parts])
    assert torch.equal(kept, whole["ids"][whole["mask"]])
    labels = torch.cat([part["labels_lm"][part["mask"]] for part in parts])
    assert torch.equal(labels, whole["labels_lm"][whole["mask"]])


def test_ranks_share_one_order(place):
    whole = opened(place).rows(range(8))
    for ranks in (1, 2, 4):
        shares = [opened(place).rows(range(rank * 8 // ranks, (rank + 1) * 8 // ranks)) for rank in range(ranks)]
        assert torch.equal(torch.cat([share["ids"][share["mask"]] for share in shares]), whole["ids"][whole["mask"]])


def test_fields_of_a_row(place):
    batch = opened(place).rows(range(300))
    mask, ids, labels, numbers = (batch[name] for name in ("mask", "ids", "labels_lm", "documents"))
    assert batch["mask"].float().mean() > 0.95  # little padding
    assert (labels[~mask] == -100).all()
    inside = (numbers[:, 1:] == numbers[:, :-1]) & mask[:, 1:] & mask[:, :-1]
    follows = labels[:, :-1] == ids[:, 1:]
    assert (follows | (labels[:, :-1] == -100))[inside].all()
    assert (batch["positions"][:, 1:][inside] == batch["positions"][:, :-1][inside] + 1).all()
    starts = mask.clone()
    starts[:, 1:] &= numbers[:, 1:] != numbers[:, :-1]
    assert (batch["positions"][starts] == 0).all()
    crossing = mask[:, 1:] & mask[:, :-1] & (numbers[:, 1:] != numbers[:, :-1])
    cut = labels[:, :-1][crossing]  # -100, or what the text goes on with in the next row
    assert len(cut) and (cut == -100).float().mean() > 0.8


def test_each_kind_by_its_text(place):
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    batch = opened(place, length=192).rows(range(120))
    seen = {number: [] for number in range(4)}
    for source, ids, labels in documents(batch):
        seen[source].append((tokenizer.decode(ids), tokenizer.decode([x for x in labels if x != -100]), labels))
    english, chinese, pairs, told = (seen[number] for number in range(4))
    assert all("sell a" in text or "It is" in text or not text.startswith("<s>") for text, *_ in english)
    assert any(text.startswith("<s>我卖一个") and "。它是" in text for text, *_ in chinese)  # no space between
    directions = {text.startswith("<s>I sell") for text, *_ in pairs}
    assert directions == {True, False} and all(text.count("\n") == 1 for text, *_ in pairs)
    assert all(text.endswith("</s>") and learned == text.removeprefix("<s>") for text, learned, _ in pairs)
    for text, learned, labels in told:
        colour = text.split("a ")[1].split(" ")[0]
        assert text == f"<s>### Instruction:Name the colour.\n{text.split(chr(10))[1]}"
        assert learned == f"{colour}</s>" and labels[-1] == -100


def test_every_whole_sample_once_and_none_is_lost(place):
    made = opened(place, only=("pairs", "sft"), heldout=True)
    found = sorted((source, ids) for source, ids, _ in documents(made.rows(range(len(made)))))
    wanted = []
    for number, samples in enumerate(made.samples):
        for sample in range(len(samples)):
            variant = sample % samples.variants
            item, start, stop = samples.piece(sample, variant)
            wanted.append((number, samples.tokens(item, variant, start, stop)[0].tolist()))
    assert found == sorted(wanted) and len(found) > 40


def test_texts_are_cut_and_nothing_is_lost(place):
    made = opened(place, only=("en",), sampler={"anchors": {0: {"en": 1}, 1: {"en": 1}}}, length=16)
    samples, spans = made.samples[0], {}
    for row in made._block(0):
        for _, item, _, start, stop in row:
            spans.setdefault(item, []).append((start, stop))
    epochs = made.mix(256)["epochs_en"]
    assert 0 < epochs < 1 and (samples.stop - samples.start).max() <= 16
    ends = {}
    for item, parts in spans.items():
        flat = [place for start, stop in parts for place in range(start, stop)]
        assert len(flat) == len(set(flat))  # no token twice within an epoch
        ends[item] = len(flat)
    around = np.diff(np.asarray(samples.shards.sentences)).reshape(-1, 2).sum(1) + 2
    complete = [item for item, count in ends.items() if count >= around[item] - 1]  # a lone end may be dropped
    assert len(complete) > 0.8 * len(ends)


def test_the_books_follow_the_sampler(place):
    made = opened(place)
    books = made.mix(200)
    total = sum(books[f"samples_{name}"] for name in SOURCES)
    assert books["lambda"] == pytest.approx(min(1, total / 300)) and books["rows"] == 200
    assert sum(books[f"share_{name}"] for name in SOURCES) == pytest.approx(1)
    assert sum(books[f"tokens_{name}"] for name in SOURCES) >= 200 * LENGTH * 0.95
    assert made.ahead(0) == 0 and made.ahead(200) == pytest.approx(books["lambda"], abs=0.15) and made.ahead(9999) == 1
    assert made.mix(0)["samples_en"] == 0 and made.mix(700)["epochs_sft"] > made.mix(300)["epochs_sft"]


def test_a_source_that_ends_mid_ramp_goes_on_in_a_new_order(place):
    made = opened(place, zh={"data": place / "texts", "language": "zh"}, sampler={"grow": 1200})
    books = made.mix(600)
    assert books["lambda"] == 1 and min(books[f"epochs_{name}"] for name in SOURCES) > 0.2
    order = [made._packer._order(1, epoch).tolist() for epoch in range(2)]
    assert sorted(order[0]) == sorted(order[1]) and order[0] != order[1]
    capped = opened(place, zh={"repeats": 0.5}, sampler={"grow": 1200})
    assert capped.mix(600)["epochs_zh"] == pytest.approx(0.5, abs=0.01)


def test_sources_that_may_all_end(place):
    """Every row of what the limits allow, then a clear word: also for rows far behind the end, and in the books."""
    twice = {name: {"repeats": 2} for name in SOURCES}
    made = opened(place, **twice)
    with pytest.raises(Exhausted, match=r"the mixture has (\d+) rows") as caught:
        made.rows([100_000])
    rows = int(str(caught.value).split(" rows")[0].split()[-1].replace(",", ""))
    assert made.mix(rows)["epochs_zh"] == 2 and len(made.rows([rows - 1])["ids"]) == 1
    for asked in (lambda: made.rows([rows]), lambda: made.mix(rows + 1), lambda: opened(place, **twice).mix(9999)):
        with pytest.raises(Exhausted, match="allow more repeats"):
            asked()


def test_heldout_rows_are_finite_and_do_not_depend_on_the_sampler(place):
    one, other = opened(place, heldout=True), opened(place, heldout=True, sampler={"preset": "static", "grow": 9})
    assert len(one) == len(other) > 3 and one.fingerprint == other.fingerprint
    batch = one.rows(range(len(one)))
    assert same(batch, other.rows(range(len(one)))) and same(one.rows([0]), one.rows([len(one)]))
    counts = np.bincount(batch["sources"][batch["mask"]].numpy())
    books = [part.report["tokens"] for part in one.samples]
    assert len(counts) == 4 and counts.min() > 0
    assert abs(sum(counts) - sum(books)) < 0.2 * sum(books)
    first = np.bincount(one.rows(range(4))["sources"].numpy().ravel(), minlength=4)
    assert first.min() > 0  # all from the first rows on


def test_an_instruction_longer_than_a_row_is_left_out_and_counted(place):
    long = pl.DataFrame({"instruction": ["Repeat."] * 3, "input": ["a", "b " * 300, ""], "output": ["a", "b", " "],
                         "language": ["en"] * 3})  # fmt: skip
    made = opened(place, only=("sft",), sampler={"temperature": 1.0}, sft={"data": long})
    assert made.report["sft"]["too_long"] == 1 and made.report["sft"]["without_text"] == 1
    assert made.report["sft"]["samples"] == 1
    with pytest.raises(MixtureError, match="all 1 items are longer than a row of 192"):
        opened(place, only=("sft",), sampler={"temperature": 1.0}, sft={"data": long[1:2]})


def test_empty_sources_are_refused(place):
    with pytest.raises(MixtureError, match="source zh is empty: none of .* rows of language ja"):
        opened(place, zh={"language": "ja"})
    empty = pl.DataFrame(schema={"instruction": pl.String, "input": pl.String, "output": pl.String})
    with pytest.raises(MixtureError, match="source sft is empty: none of 0 rows"):
        opened(place, sft={"data": empty})


@pytest.mark.parametrize(
    ("sampler", "said"),
    [
        ({"anchors": {0: {"en": 0.5}, 1: {"en": 1}}}, "sum to 1, not 0.5"),
        ({"presset": "static"}, "presset"),
        ({"temperature": 2.0, "preset": "static"}, "leave them out"),
    ],
)
def test_samplers_that_cannot_work(place, sampler, said):
    with pytest.raises(ValueError, match=said):
        opened(place, sampler=sampler)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"kind": "texts"}, "kind is 'texts'"),
        ({"kind": "sft"}, "holds documents, but kind sft reads instructions"),
        ({"template": "concat"}, "of kind text it is one of plain"),
        ({"weight": 2}, "has no setting weight"),
        ({"repeats": 0}, "repeats is 0"),
        ({"data": None}, "lacks data"),
        ({"data": "absent"}, "absent is no folder of ingested data"),
    ],
)
def test_sources_that_cannot_work(place, entry, said):
    with pytest.raises(SettingsError, match=said):
        opened(place, en=entry)


def test_temperature_flattens_sizes(place):
    shares = {t: opened(place, sampler={"temperature": t}).mix(0) for t in (1.0, 5.0)}
    sizes = {part.name: len(part) for part in opened(place).samples}
    for name, size in sizes.items():
        assert shares[1.0][f"share_{name}"] == pytest.approx(size / sum(sizes.values()))
    assert max(shares[5.0][f"share_{n}"] for n in sizes) < max(shares[1.0][f"share_{n}"] for n in sizes)


def test_translations_inside_the_share_of_instructions(place):
    told = {"pairs": {"template": "instruct", "role": "sft"}}
    books = opened(place, sampler={"grow": 300}, **told).mix(400)  # behind the ramp; no source of role parallel
    assert books["share_sft"] == books["share_pairs"] == pytest.approx(0.7 / 0.95 / 2)


def test_tokens_are_kept_by_what_made_them(place, tmp_path, monkeypatch):
    one = opened(place, cache=tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert len(kept) == 4

    def never(*_, **__):
        raise AssertionError("cut again")

    monkeypatch.setattr("tasks.mixed_samples._write", never)
    assert opened(place, cache=tmp_path).fingerprint == one.fingerprint
    with pytest.raises(AssertionError, match="cut again"):
        opened(place, cache=tmp_path, pairs={"template": "tagged"})


def test_the_fingerprint_knows_what_decides(place):
    first = opened(place).fingerprint
    assert first == opened(place).fingerprint
    others = [opened(place, sampler={"grow": 301}), opened(place, length=100),
              opened(place, pairs={"template": "tagged"}),
              opened(place, zh={"repeats": 9}), opened(place, only=("en", "zh"))]  # fmt: skip
    assert len({first, *(other.fingerprint for other in others)}) == 6


def test_a_tokenizer_without_byte_fallback_is_refused(place, tmp_path):
    from tasks.tokenizer import make_tokenizer

    make_tokenizer({"kind": "wordpiece", "vocabulary": 300}, [place / "english"], tmp_path / "tokenizer")
    with pytest.raises(MixtureError, match="source zh: the tokenizer does not know .* no byte fallback"):
        open_mixture(sources(place), {"grow": 300}, tmp_path / "tokenizer", LENGTH, 3)


@pytest.mark.parametrize(
    ("form", "prompt", "answer"),
    [("chatflow", "### Instruction:Say.\nx\\ny  ### Response:", "a\\nb"), ("plain", "Say.x\ny", "a\nb")],
)
def test_prompts_by_hand(form, prompt, answer):
    assert prompted({"instruction": "Say.", "input": "x\\ny", "output": "a\\nb"}, form) == (prompt, answer)


@pytest.mark.parametrize("form", ["tagged", "instruct"])
def test_templates_of_pairs(place, form):
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    made = opened(place, only=("pairs",), sampler={"temperature": 1.0}, length=192, pairs={"template": form})
    texts = [(tokenizer.decode(ids), tokenizer.decode([x for x in labels if x != -100]))
             for _, ids, labels in documents(made.rows(range(12)))]  # fmt: skip
    if form == "tagged":
        assert {text[:7] for text, _ in texts} == {"<s><en>", "<s><zh>"}
        assert all(" <zh> 我卖" in text or " <en> I sell" in text for text, _ in texts)
    else:
        into = [(text.split(":")[1], learned) for text, learned in texts]
        assert {asked[:9] for asked, _ in into} == {"Translate", "翻译成中文：\nI "[:9]}
        assert all(learned.startswith("我卖" if "翻译" in asked else "I sell") for asked, learned in into)


def test_the_tokenizers_own_template(place, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(place / "tokenizer")
    tokenizer.chat_template = ("{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
                               "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
                               "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    chosen = {"sft": sources(place)["sft"] | {"template": "chat"}}
    made = open_mixture(chosen, {"temperature": 1.0}, tmp_path, 192, 3)
    _, ids, labels = next(documents(made.rows([0])))
    text = tokenizer.decode(ids)
    assert text.startswith("<s>[user]Name the colour.\nI sell") and text.count("<s>") == text.count("</s>") == 1
    asked = tokenizer.apply_chat_template([{"role": "user", "content": text[9:].split("[assistant]")[0]}],
                                          tokenize=False, add_generation_prompt=True)  # fmt: skip
    assert text == asked + text.split("[assistant]")[1]  # what is asked in use is what was learned
    assert tokenizer.decode([x for x in labels if x != -100]) == text.split("[assistant]")[1]
    with pytest.raises(MixtureError, match="needs a tokenizer with a chat template"):
        open_mixture(chosen, {"temperature": 1.0}, place / "tokenizer", 192, 3)
