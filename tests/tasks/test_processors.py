"""Text processors: what a row says, by hand, by its statistics, and by taking it back to the text it came from."""

import inspect
from collections import Counter

import numpy as np
import pytest
from _corpus import BOS, CLS, EOS, FIRST, MASK, PAD, SEP, SIZE, documents, draw, flat, given, made, tokenizer

from tasks.processors import Given, build, method, names, settings, summary
from tasks.processors._masking import Masking
from tasks.processors._pairs import shortened
from tasks.processors.bart import spans
from tasks.processors.t5 import uncorrupted
from tasks.tokenizer import Vocabulary

A, B, C, D, E, F, G, H = range(100, 108)


def within(share: float, expected: float, count: int) -> bool:
    """Whether an observed share is within four standard errors."""
    return abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5


# ---- the registry


def test_every_processor_has_a_line_and_defaults():
    expected = "albert bart beit bert bilm clip cls cls_mlm dalle gsg lm mlm mt prefixlm s2t sft t5 vilt vit"
    assert names() == expected.split()
    for name in names():
        assert summary(name).endswith(".")
        assert list(inspect.signature(method(name)).parameters)[0] == "given"
        assert inspect.Parameter.empty not in settings(name, {}).values()


def test_unknown_names_and_settings_are_refused_with_the_closest(tmp_path):
    with pytest.raises(LookupError, match="closest: bert"):
        method("bertt")
    with pytest.raises(ValueError, match=r"no setting maskin \(meant: masking\?\); it accepts: masking, share"):
        build("mlm", given(tmp_path, text=documents(3)), maskin="word")


# ---- masking


def masked(tmp_path, unit: str, rows: int = 400, length: int = 100, **shares):
    """Rows of `length` with a special token at both ends and in the middle, hidden."""
    vocabulary = Vocabulary.open(tokenizer(tmp_path / "tokenizer"))
    masking = Masking(Given(tmp_path, vocabulary, length, 0), unit, **shares)
    rng = np.random.default_rng(0)
    for _ in range(rows):
        ids = rng.integers(FIRST, SIZE, length)
        ids[[0, 50, -1]] = CLS, SEP, SEP
        starts = rng.random(length) < 2 / 3
        yield ids, starts, *masking(ids, starts, rng)


@pytest.mark.parametrize("unit", ["token", "word", "span", "ngram"])
def test_fifteen_percent_are_asked_for_and_specials_never(tmp_path, unit):
    asked, kinds, rows = 0, Counter(), 0
    for ids, _, hidden, labels in masked(tmp_path, unit):
        at = labels != -100
        assert (labels[at] == ids[at]).all()
        assert (hidden[~at] == ids[~at]).all()
        assert not at[[0, 50, -1]].any()
        assert not (set(hidden[at]) - {MASK}) & set(range(FIRST)), "a special token was put in"
        kinds["mask"] += int((hidden[at] == MASK).sum())
        kinds["same"] += int((hidden[at] == ids[at]).sum())
        asked, rows = asked + int(at.sum()), rows + 1
        assert 1 <= at.sum() <= round(0.15 * 97)
    assert asked / (97 * rows) > 0.14
    decisions = asked if unit in ("token", "word") else asked / 3.8  # a span decides once
    assert within(kinds["mask"] / asked, 0.8, decisions)
    assert within(kinds["same"] / asked, 0.1 + 0.1 / (SIZE - FIRST), decisions)


def test_token_masking_takes_exactly_its_share(tmp_path):
    assert {int((labels != -100).sum()) for *_, labels in masked(tmp_path, "token", rows=50)} == {round(0.15 * 97)}


def test_at_least_one_token_is_asked_for(tmp_path):
    vocabulary = Vocabulary.open(tokenizer(tmp_path))
    rng = np.random.default_rng(0)
    ids = np.array([CLS, A, B, SEP])
    for unit in ("token", "word", "span", "ngram"):
        masking = Masking(Given(tmp_path, vocabulary, 4, 0), unit)
        labels = masking(ids, np.array([True, True, False, True]), rng)[1]
        # A and B are one word: hidden together, or one of them where a budget of one token rules
        assert (labels != -100).sum() == (2 if unit == "word" else 1)
        nothing = masking(np.array([CLS, SEP]), np.array([True, True]), rng)
        assert nothing[0].tolist() == [CLS, SEP] and nothing[1].tolist() == [-100, -100]


def test_whole_words_are_hidden_whole(tmp_path):
    for _, starts, _, labels in masked(tmp_path, "word"):
        begins = starts.copy()
        begins[[0, 1, 50, 51, 99]] = True
        word = np.cumsum(begins)
        at = labels != -100
        assert not set(word[at]) & set(word[~at])


def test_words_and_spans_stop_at_special_tokens(tmp_path):
    vocabulary = Vocabulary.open(tokenizer(tmp_path))
    rng = np.random.default_rng(0)
    # No token is marked as a start, yet A and B are two words: SEP lies between them.
    masking = Masking(Given(tmp_path, vocabulary, 8, 0), "word")
    assert (masking(np.array([CLS, A, SEP, B, SEP]), np.zeros(5, bool), rng)[1] != -100).sum() == 1
    # A special token behind each word: spans are single words, so that neighbours are hidden by chance only, 15%.
    row = np.tile([A, SEP], 400)
    at = Masking(Given(tmp_path, vocabulary, 800, 0), "span")(row, np.ones(800, bool), rng)[1][::2] != -100
    assert at.sum() == 60
    assert (at[1:] & at[:-1]).sum() / at.sum() < 0.35


def test_spans_have_the_lengths_of_the_paper(tmp_path):
    # Words of one token each; a span longer than its budget is cut, so the budget is made wide: 15% of 1,000.
    vocabulary = Vocabulary.open(tokenizer(tmp_path))
    masking = Masking(Given(tmp_path, vocabulary, 1000, 0), "span", masked=1.0, random=0.0, share=0.02)
    rng, runs = np.random.default_rng(0), []
    for _ in range(400):
        ids = np.full(1000, A)
        labels = masking(ids, np.ones(1000, bool), rng)[1]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], labels != -100, [0]])))
        runs += (edges[1::2] - edges[::2]).tolist()
    # The mean of a geometric length cut at 10 is 3.797; the last span of each row is cut, the first few are not.
    odds = 0.2 * 0.8 ** np.arange(10)
    assert np.average(np.arange(1, 11), weights=odds) == pytest.approx(3.797, abs=1e-3)
    assert 3.2 < np.mean(runs) < 4.2
    np.testing.assert_allclose(masking.lengths, np.cumsum(odds / odds.sum()))


def test_ngram_lengths_of_albert(tmp_path):
    # p(n) = (1/n) / (1 + 1/2 + 1/3): 6/11, 3/11, 2/11.
    masking = Masking(Given(tmp_path, Vocabulary.open(tokenizer(tmp_path)), 8, 0), "ngram")
    np.testing.assert_allclose(masking.lengths, [6 / 11, 9 / 11, 1])


def test_a_span_decides_once_for_all_its_tokens(tmp_path):
    for ids, _, hidden, labels in masked(tmp_path, "span", rows=100, masked=0.5, random=0.0):
        at = np.flatnonzero(labels != -100)
        for run in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
            kept = hidden[run] == ids[run]
            assert np.diff(kept.astype(int)).nonzero()[0].size <= 2  # two spans may touch, three hardly


def test_impossible_masking_is_refused(tmp_path):
    vocabulary = Vocabulary.open(tokenizer(tmp_path, without=("mask",)))
    with pytest.raises(ValueError, match="the tokenizer has no mask"):
        Masking(Given(tmp_path, vocabulary, 8, 0))
    good = Given(tmp_path, Vocabulary.open(tokenizer(tmp_path)), 8, 0)
    with pytest.raises(ValueError, match="one of token, word, span, ngram; got 'phrase'"):
        Masking(good, "phrase")
    with pytest.raises(ValueError, match="shares must lie in 0..1"):
        Masking(good, share=1.5)


# ---- pairs


def test_truncation_by_hand():
    rng = np.random.default_rng(0)
    # 7 and 3 to 6: four tokens go from the longer side, which then equals the other.
    (a, b), (c, d) = shortened((10, 17), (20, 23), 6, rng)
    assert (b - a, d - c) == (3, 3) and a >= 10 and b <= 17 and (c, d) == (20, 23)
    # 4 and 4 to 5: of equals the second gives first, then the first, then the second again.
    (a, b), (c, d) = shortened((0, 4), (4, 8), 5, rng)
    assert (b - a, d - c) == (3, 2)
    assert shortened((0, 2), (2, 4), 4, rng) == ((0, 2), (2, 4))
    fronts = [shortened((0, 20), (0, 1), 11, rng)[0][0] for _ in range(500)]
    assert within(np.mean(fronts) / 10, 0.5, 5000)


def unmasked(row) -> tuple[list[int], list[int]]:
    """A and B of a pair with its hidden tokens put back."""
    ids = np.where(row["labels_mlm"] != -100, row["labels_mlm"], row["ids"])
    assert ids[0] == CLS and ids[-1] == SEP and (ids == SEP).sum() == 2
    middle = int(np.flatnonzero(ids == SEP)[0])
    assert row["segments"].tolist() == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
    return ids[1:middle].tolist(), ids[middle + 1 : -1].tolist()


def follows(first: list[int], second: list[int], texts: list[list[int]]) -> bool:
    """Whether both lie in one text, the second right behind the first."""
    joined = first + second
    return any(joined == text[n : n + len(joined)] for text in texts for n in range(len(text) - len(joined) + 1))


def test_bert_pairs_follow_each_other_or_come_from_elsewhere(tmp_path):
    texts = documents(60, sentences=8)
    # A row with room for the longest document: nothing is cut off, so a true pair is found whole.
    bert = made("bert", tmp_path, {"short": 0.0}, length=128, text=texts)
    pieces, labels = [flat(text) for text in texts], []
    for row in draw(bert):
        first, second = unmasked(row)
        assert first and second
        assert follows(first, second, pieces) == (row["labels_sp"] == 0)
        labels.append(row["labels_sp"])
    several = [label for label, one in zip(labels, bert.cuts[0].last - bert.cuts[0].first == 1, strict=True) if not one]
    assert within(np.mean(several), 0.5, len(several))
    assert bert.report["chunks_of_one_sentence"] == len(labels) - len(several)


def test_bert_takes_wrong_parts_from_every_other_document_and_never_from_its_own(tmp_path):
    texts = [[[100 + n] * 3] * 6 for n in range(4)]
    seen = set()
    for row in draw(made("bert", tmp_path, length=12, text=texts), 20):
        first, second = (set(part) for part in unmasked(row))
        assert (first != second) == row["labels_sp"]
        seen |= {(*first, *second)}
    assert seen >= {(100 + a, 100 + b) for a in range(4) for b in range(4) if a != b}


def test_bert_uses_every_sentence_once(tmp_path):
    bert = made("bert", tmp_path, length=32, text=[*documents(40), [[], [A]]])
    (cut,) = bert.cuts
    ends = np.where(cut.other, cut.middle, cut.last)  # what a wrong part stands for begins the next chunk
    used = [sentence for first, end in zip(cut.first, ends, strict=True) for sentence in range(first, end)]
    assert used == list(range(len(bert.text.sentences) - 1))


def test_bert_fills_rows_and_shortens_a_tenth(tmp_path):
    long = documents(20, sentences=60, seed=1)
    full = made("bert", tmp_path, {"short": 0.0, "other": 0.0}, length=64, text=long)
    sizes = np.array([len(row["ids"]) for row in draw(full)])
    assert sizes.max() == 64
    assert (sizes < 64).sum() <= 20 < len(sizes) / 3  # only the end of a document may be shorter
    short = made("bert", tmp_path, {"other": 0.0, "copies": 5}, length=64)
    targets = np.concatenate([cut.target for cut in short.cuts])
    assert len(short) == len(targets) == sum(1 for _ in draw(short))
    assert within((targets < 61).mean(), 0.1 * 59 / 60, len(targets))


def test_bert_draws_another_document_in_another_epoch(tmp_path):
    bert = made("bert", tmp_path, text=documents(60))
    place = int(np.flatnonzero(bert.cuts[0].other)[0])
    assert len({tuple(unmasked(bert.row(place, np.random.default_rng(n)))[1]) for n in range(5)}) > 1


def test_albert_swaps_half_of_its_pairs(tmp_path):
    texts = documents(80, sentences=8)
    albert = made("albert", tmp_path, {"short": 0.0}, length=128, text=texts)
    pieces, labels = [flat(text) for text in texts], []
    for row in draw(albert):
        first, second = unmasked(row)
        assert follows(*((second, first) if row["labels_sp"] else (first, second)), pieces)
        labels.append(row["labels_sp"])
    assert within(np.mean(labels), 0.5, len(labels))
    lone = sum(len(flat(text)) for text in texts if len(text) == 1)
    assert albert.report["tokens_left_out"] == lone > 0


def test_corpora_without_pairs_are_refused(tmp_path):
    single = [[[A, B, C]], [[D, E]]]
    with pytest.raises(ValueError, match="2 documents, the longest has 1 sentences; use the processor mlm"):
        made("bert", tmp_path, text=single)
    with pytest.raises(ValueError, match="1 documents, the longest has 2"):
        made("bert", tmp_path, text=[[[A], [B]], [[]]])
    with pytest.raises(ValueError, match="sentence order needs documents of two sentences"):
        made("albert", tmp_path, text=single)
    with pytest.raises(ValueError, match="at least 5 places"):
        made("bert", tmp_path, length=4, text=documents(5))


# ---- language models


def test_lm_by_hand(tmp_path):
    lm = made("lm", tmp_path, length=16, text=[[[A, B], [C]]])
    (row,) = draw(lm)
    assert row["ids"].tolist() == [BOS, A, B, C, EOS]
    assert row["labels_lm"].tolist() == [A, B, C, EOS, -100]
    assert row["documents"].tolist() == [0] * 5 and row["positions"].tolist() == [0, 1, 2, 3, 4]


def test_lm_goes_on_in_the_next_row(tmp_path):
    first, second, third = draw(made("lm", tmp_path, length=2, text=[[[A, B, C]]]))
    assert [row["ids"].tolist() for row in (first, second, third)] == [[BOS, A], [B, C], [EOS]]
    assert [row["labels_lm"].tolist() for row in (first, second, third)] == [[A, B], [C, EOS], [-100]]


def runs(row) -> list[slice]:
    """The places of each document of a packed row; checks numbers and positions."""
    borders = np.flatnonzero(np.diff(row["documents"])) + 1
    edges = [0, *borders.tolist(), len(row["documents"])]
    found = [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]
    assert [row["documents"][run].tolist() for run in found] == [[n] * (r.stop - r.start) for n, r in enumerate(found)]
    assert all(row["positions"][run].tolist() == list(range(run.stop - run.start)) for run in found)
    return found


@pytest.mark.parametrize("packing", ["concat", "first_fit", "best_fit", "none"])
def test_lm_takes_every_token_once_and_no_label_crosses_a_border(tmp_path, packing):
    texts = [*documents(60), []]  # the last one is empty
    lm = made("lm", tmp_path, {"packing": packing}, length=32, text=texts)
    real, seen, asked = {(BOS, *flat(text), EOS) for text in texts if text}, Counter(), 0
    for row in draw(lm):
        assert len(row["ids"]) <= 32
        seen.update(row["ids"].tolist())
        asked += int((row["labels_lm"] != -100).sum())
        for run in runs(row) if packing != "none" else [slice(None)]:
            ids, labels = row["ids"][run].tolist(), row["labels_lm"][run].tolist()
            assert labels[:-1] == ids[1:]
            assert (labels[-1] == -100) == (ids[-1] == EOS)
            piece = ids + [label for label in labels[-1:] if label != -100]
            assert any(tuple(piece) == text[n : n + len(piece)] for text in real for n in range(len(text)))
    assert seen == Counter(token for text in real for token in text)
    assert asked == sum(len(text) - 1 for text in real)  # every token but the first is predicted once
    assert lm.report["documents"] == 60 and lm.report["tokens_left_out"] == 0


def test_bilm_labels_are_the_neighbours(tmp_path):
    (row,) = draw(made("bilm", tmp_path, text=[[[A, B]]]))
    assert row["ids"].tolist() == [BOS, A, B, EOS]
    assert row["labels_bilm"].T.tolist() == [[A, B, EOS, -100], [-100, BOS, A, B]]


@pytest.mark.parametrize("packing", ["concat", "none"])
def test_bilm_knows_its_neighbours_across_a_cut(tmp_path, packing):
    bilm = made("bilm", tmp_path, {"packing": packing}, length=8, text=documents(30))
    forward = backward = total = 0
    for row in draw(bilm):
        total += len(row["ids"])
        after, before = row["labels_bilm"].T
        assert ((row["ids"] == EOS) == (after == -100)).all()
        assert ((row["ids"] == BOS) == (before == -100)).all()
        forward, backward = forward + (after != -100).sum(), backward + (before != -100).sum()
    assert forward == backward == total - 30


@pytest.mark.parametrize("packing", ["concat", "first_fit", "none"])
def test_mlm_rows_are_whole_texts_between_their_own_special_tokens(tmp_path, packing):
    texts = [*documents(60), [[]]]
    mlm = made("mlm", tmp_path, {"packing": packing, "masking": "word"}, length=32, text=texts)
    seen = Counter()
    for row in draw(mlm):
        ids = np.where(row["labels_mlm"] != -100, row["labels_mlm"], row["ids"])
        assert (row["labels_mlm"] != -100).any()
        for run in runs(row) if packing != "none" else [slice(None)]:
            assert ids[run][0] == CLS and ids[run][-1] == SEP
            seen.update(ids[run][1:-1].tolist())
    assert seen == Counter(token for text in texts for token in flat(text))


def test_prefix_lm_by_hand(tmp_path):
    (row,) = draw(made("prefixlm", tmp_path, source=[[[A, B]]], target=[[[C]]]))
    assert row["ids"].tolist() == [BOS, A, B, EOS, C, EOS]
    assert row["prefix"].tolist() == [True] * 4 + [False] * 2
    assert row["labels_lm"].tolist() == [-100, -100, -100, C, EOS, -100]
    assert row["segments"].tolist() == [0, 0, 0, 0, 1, 1]


def test_prefix_lm_of_documents_splits_them(tmp_path):
    prefixlm = made("prefixlm", tmp_path, length=20, text=[*documents(40), [[A]]])
    for row in draw(prefixlm):
        prefix = row["prefix"]
        assert 2 <= prefix.sum() <= len(prefix) - 2
        assert (np.diff(prefix.astype(int)) <= 0).all()
        asked = row["labels_lm"] != -100
        assert asked.tolist() == [False] * (prefix.sum() - 1) + [True] * int((~prefix).sum()) + [False]
    with pytest.raises(ValueError, match="none fits into a row of 4"):
        made("prefixlm", tmp_path / "pairs", length=4, source=[[[A, B]]], target=[[[C]]])


def test_sft_learns_responses_only(tmp_path):
    prompts, answers = [[[A, B]], [[C]], [[D] * 9], [[E]]], [[[C, D]], [[E, F]], [[F]], [[]]]
    sft = made("sft", tmp_path, {"packing": "best_fit"}, length=11, prompt=prompts, response=answers)
    (row,) = draw(sft)
    assert row["ids"].tolist() == [BOS, A, B, C, D, EOS, BOS, C, E, F, EOS]
    assert row["labels_lm"].tolist() == [-100, -100, C, D, EOS, -100, -100, E, F, EOS, -100]
    assert [(run.start, run.stop) for run in runs(row)] == [(0, 6), (6, 11)]
    assert sft.report["documents_left_out"] == 1 and sft.report["tokens_left_out"] == 12
    assert sft.report["without_response"] == 1 and sft.report["efficiency"] == 1.0


def test_sft_refuses_rows_too_short_and_streams_that_differ(tmp_path):
    with pytest.raises(ValueError, match="none of 1 examples fits into a row of 4"):
        made("sft", tmp_path, length=4, prompt=[[[A, B]]], response=[[[C, D]]])
    with pytest.raises(ValueError, match="prompt 1, response 2"):
        made("sft", tmp_path / "other", prompt=[[[A]]], response=[[[B]], [[C]]])
    with pytest.raises(ValueError, match="packing is first_fit, best_fit or none"):
        made("sft", tmp_path / "third", {"packing": "concat"}, prompt=[[[A]]], response=[[[B]]])


# ---- encoder and decoder


def test_mt_by_hand(tmp_path):
    mt = made("mt", tmp_path, length=4, source=[[[A, B]], [[A]], []], target=[[[C]], [[D, E, F, G]], [[A]]])
    (row,) = draw(mt)
    assert row["ids"].tolist() == [A, B, EOS]
    assert row["target_ids"].tolist() == [BOS, C] and row["labels_lm"].tolist() == [C, EOS]
    assert mt.report == {"rows": 1, "pairs_left_out": 2}  # one target is too long, one source is empty
    with pytest.raises(ValueError, match="none of 1 pairs"):
        made("mt", tmp_path / "long", length=4, source=[[[A] * 4]], target=[[[B]]])


def restored(source: list[int], target: list[int]) -> list[int]:
    """The text that a T5 pair came from: each sentinel of the source replaced by what the target puts behind it."""
    parts, current = {}, None
    for token in target:
        if 7 <= token < FIRST:
            current = token
            parts[token] = []
        else:
            parts[current].append(token)
    assert list(parts) == list(range(7, 7 + len(parts)))  # sentinels in order, the final one too
    assert parts[7 + len(parts) - 1] == []
    return [text for token in source for text in (parts[token] if 7 <= token < FIRST else [token])]


@pytest.mark.parametrize("packing", ["none", "first_fit"])
def test_t5_source_and_target_give_the_text_back(tmp_path, packing):
    texts = documents(60)
    t5 = made("t5", tmp_path, {"packing": packing}, length=32, text=texts)
    seen, hidden = Counter(), 0
    for row in draw(t5):
        assert len(row["ids"]) <= 32
        assert row["target_ids"].tolist()[1:] == [
            PAD if row["labels_lm"][n] == EOS else row["labels_lm"][n] for n in range(len(row["labels_lm"]) - 1)
        ]
        cut = lambda ids: np.split(ids, np.flatnonzero(ids == EOS)[:-1] + 1)
        sources, targets = cut(row["ids"]), cut(row["labels_lm"])
        assert len(sources) == len(targets)
        for source, target in zip(sources, targets, strict=True):
            assert source[-1] == target[-1] == EOS
            assert source[0] >= FIRST  # a text begins with a visible token
            seen.update(restored(source[:-1].tolist(), target[:-1].tolist()))
            hidden += sum(token >= FIRST for token in target)
        if packing != "none":
            numbers = [np.bincount(row[stem + "documents"]).tolist() for stem in ("", "target_")]
            assert numbers == [[len(s) for s in sources], [len(t) for t in targets]]
            assert runs(row) and row["target_positions"].max() < len(row["target_ids"])
    total = Counter(token for text in texts for token in flat(text))
    lost = total - seen
    assert not seen - total
    assert sum(lost.values()) == t5.report["tokens_left_out"]
    assert 0.13 < hidden / sum(seen.values()) < 0.18


def test_t5_fits_long_texts_to_the_row(tmp_path):
    # The paper's numbers: 568 tokens become 512, and a target of 114, with a final sentinel 115.
    assert uncorrupted(512, 0.15, 3.0) == 568
    t5 = made("t5", tmp_path, length=128, text=[[list(np.random.default_rng(0).integers(FIRST, SIZE, 5000))]])
    sizes = Counter(len(row["ids"]) for row in draw(t5))
    assert sizes[128] >= len(t5) - 1


def test_t5_refuses_what_it_cannot_corrupt(tmp_path):
    few = Vocabulary.open(tokenizer(tmp_path / "few", sentinels=2))
    place = given(tmp_path, length=128, text=documents(20, sentences=20))
    with pytest.raises(ValueError, match="sentinels"):
        build("t5", Given(place.folder, few, 128, 0))
    with pytest.raises(ValueError, match="no document has the two tokens"):
        made("t5", tmp_path / "one", text=[[[A]]])
    with pytest.raises(ValueError, match="in spans of at least 1 token; got 0.15 and 0.5"):
        made("t5", tmp_path, {"mean": 0.5}, length=128)
    with pytest.raises(ValueError, match="at least 3 places"):
        made("t5", tmp_path / "short", length=2, text=[[[A, B]]])


def test_bart_hides_a_third_of_a_text_that_it_gives_back(tmp_path):
    texts = documents(60, sentences=10)
    bart = made("bart", tmp_path, length=48, text=texts)
    seen, hidden, total = Counter(), 0, 0
    for row in draw(bart):
        ids, labels = row["ids"], row["labels_lm"]
        assert len(labels) <= 48 and len(ids) <= 48
        assert row["target_ids"].tolist() == [EOS, *labels[:-1].tolist()]
        assert ids[0] == labels[0] == BOS and ids[-1] == labels[-1] == EOS
        text, noised = labels[1:-1], ids[1:-1]
        visible = Counter(noised[noised != MASK].tolist())
        assert not visible - Counter(text.tolist())
        seen.update(text.tolist())
        hidden, total = hidden + len(text) - sum(visible.values()), total + len(text)
    assert seen == Counter(token for document in texts for token in flat(document))
    assert 0.27 < hidden / total < 0.33


def test_bart_without_shuffling_is_the_text_with_gaps(tmp_path):
    for row in draw(made("bart", tmp_path, {"shuffle": False}, length=48, text=documents(40))):
        text, noised = row["labels_lm"][1:-1].tolist(), row["ids"][1:-1].tolist()
        place = 0  # the visible parts lie in the text in their order; a mask stands for what is between them
        parts = "".join(" " if token == MASK else chr(token) for token in noised).split()
        whole = "".join(map(chr, text))
        for part in parts:
            place = whole.index(part, place) + len(part)
        if noised and noised[-1] != MASK:
            assert whole.endswith(parts[-1])


def test_bart_shuffles_whole_sentences(tmp_path):
    bart = made("bart", tmp_path, {"share": 0.0}, text=[[[A, B], [C], [D, E, F]]])
    orders = {tuple(bart.row(0, np.random.default_rng(n))["ids"][1:-1].tolist()) for n in range(200)}
    assert len(orders) == 6
    assert all("".join(map(chr, order)).count("".join(map(chr, (D, E, F)))) == 1 for order in orders)


def test_passages_are_whole_sentences_where_they_fit(tmp_path):
    bart = made("bart", tmp_path, length=20, text=[*documents(40), [[A] * 50]])
    borders = set(bart.text.sentences.tolist())
    long = int(bart.text.bounds[-2])
    assert set(bart.ends[bart.ends <= long].tolist()) <= borders
    assert (bart.ends - bart.begins)[bart.begins >= long].tolist() == [18, 18, 14]
    assert bart.begins.tolist() == [0, *bart.ends[:-1].tolist()]


def test_bart_spans_are_poisson_and_apart():
    rng, lengths = np.random.default_rng(0), []
    for _ in range(200):
        begins, sizes = spans(300, 0.3, 3.0, rng)
        assert sizes.sum() == 90
        assert (begins[1:] > begins[:-1] + sizes[:-1]).all() and begins[0] >= 0 and begins[-1] + sizes[-1] <= 300
        lengths += sizes.tolist()
    assert abs(np.mean(lengths) - 3) < 0.1
    assert abs(np.mean(np.array(lengths) == 0) - np.exp(-3)) < 0.01
    for tokens in list(range(8)) * 30:  # nothing is too short, and masks never make a text longer
        begins, sizes = spans(tokens, float(rng.choice([0.2, 0.9])), 0.7, rng)
        assert tokens - sizes.sum() + len(sizes) <= tokens
        assert (begins[1:] > begins[:-1] + sizes[:-1]).all() and len(begins) == len(sizes)


def test_gsg_takes_sentences_out_and_gives_them_back(tmp_path):
    texts = documents(60, sentences=10)
    for choice in ("principal", "random", "lead"):
        gsg = made("gsg", tmp_path, {"choice": choice}, length=128, text=texts)
        whole = [flat(text) for text in texts]
        for place, row in enumerate(draw(gsg)):
            begin, end = int(gsg.begins[place]), int(gsg.ends[place])
            _, borders = gsg.text.passage(begin, end)
            gone = row["labels_lm"][:-1].tolist()
            assert row["target_ids"].tolist() == [PAD, *gone]
            assert row["ids"][-1] == row["labels_lm"][-1] == EOS
            # Walk over the sentences: a mask takes as many of the target's tokens as its sentence has.
            source, back, sizes = row["ids"][:-1].tolist(), [], np.diff(borders).tolist()
            masks = 0
            for size in sizes:
                masks += source[0] == MASK
                taken = gone[:size] if source[0] == MASK else source[:size]
                back += taken
                gone, source = (gone[size:], source[1:]) if source[0] == MASK else (gone, source[size:])
            assert not gone and not source
            assert any(back == text[n : n + len(back)] for text in whole for n in range(len(text)))
            assert masks == min(max(1, round(0.3 * len(sizes))), len(sizes) - 1)
        assert gsg.report["tokens_left_out"] == sum(len(flat(text)) for text in texts if len(text) == 1)


def test_gsg_leaves_a_sentence(tmp_path):
    for row in draw(made("gsg", tmp_path, {"share": 0.95}, text=documents(40))):
        assert set(row["ids"].tolist()) - {MASK, EOS}


def test_gsg_takes_the_sentence_that_says_most(tmp_path):
    # The second sentence shares two tokens with the others, each of which shares one: F1 is 2 * shared / all.
    (row,) = draw(made("gsg", tmp_path, text=[[[A, C], [A, B], [B, D]]]))
    assert row["ids"].tolist() == [A, C, MASK, B, D, EOS]
    assert row["labels_lm"].tolist() == [A, B, EOS]
    with pytest.raises(ValueError, match="none of 1 passages has them"):
        made("gsg", tmp_path / "one", text=[[[A, B]]])


# ---- labelled texts


def labelled(name: str, folder, texts, labels, length: int = 16, **second):
    place = given(folder, length, text=texts, **second)
    np.save(place.folder / "labels.npy", np.array(labels))
    return build(name, place)


def test_cls_by_hand(tmp_path):
    first, second = draw(labelled("cls", tmp_path, [[[A, B]], [[C]]], [1, 0], second=[[[D]], [[]]]))
    assert first["ids"].tolist() == [CLS, A, B, SEP, D, SEP] and first["segments"].tolist() == [0, 0, 0, 0, 1, 1]
    assert (first["labels_cls"], second["labels_cls"]) == (1, 0)
    assert second["ids"].tolist() == [CLS, C, SEP, SEP]


def test_cls_cuts_the_longer_side(tmp_path):
    cls = labelled("cls", tmp_path, [[[A] * 9]], [0], length=10, second=[[[B, C]]])
    (row,) = draw(cls)
    assert row["ids"].tolist() == [CLS, *[A] * 5, SEP, B, C, SEP]
    assert cls.report["texts_cut"] == 1
    (row,) = draw(labelled("cls", tmp_path / "alone", [[[A] * 20]], [0], length=10))
    assert row["ids"].tolist() == [CLS, *[A] * 8, SEP]
    (row,) = draw(labelled("cls", tmp_path / "both", [[[A] * 20]], [0], length=10, second=[[[B] * 20]]))
    assert row["ids"].tolist() == [CLS, *[A] * 3, SEP, *[B] * 4, SEP]


def test_cls_mlm_asks_for_both(tmp_path):
    rows = list(draw(labelled("cls_mlm", tmp_path, documents(20), list(range(20)), length=64)))
    assert [row["labels_cls"] for row in rows] == list(range(20))
    assert all((row["labels_mlm"] != -100).any() for row in rows)


def test_labels_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="labels.npy does not exist"):
        made("cls", tmp_path, text=[[[A]]])
    with pytest.raises(ValueError, match="2 entries for 1 examples"):
        labelled("cls", tmp_path, [[[A]]], [0, 1])
    with pytest.raises(ValueError, match="must hold whole numbers"):
        labelled("cls", tmp_path, [[[A]]], [0.5])


# ---- what every text processor refuses


@pytest.mark.parametrize("name", ["mlm", "lm", "bilm", "t5", "bart", "gsg", "bert", "albert", "prefixlm"])
def test_a_corpus_without_a_token_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="not one token"):
        made(name, tmp_path, text=[[[]], []])


@pytest.mark.parametrize("name", ["mlm", "bert", "albert", "bart", "gsg"])
def test_a_vocabulary_without_a_mask_is_refused(tmp_path, name):
    place = given(tmp_path, text=documents(10))
    vocabulary = Vocabulary.open(tokenizer(tmp_path / "other", without=("mask",)))
    with pytest.raises(ValueError, match="no mask"):
        build(name, Given(place.folder, vocabulary, 64, 0))


def test_unknown_packing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one of none, concat, first_fit, best_fit; got 'tight'"):
        made("lm", tmp_path, {"packing": "tight"}, text=[[[A]]])
