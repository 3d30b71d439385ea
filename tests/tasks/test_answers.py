"""Metrics of answers: by hand, and against scikit-learn and SciPy on random answers."""

import numpy as np
import pytest

from tasks import answers


def test_classes_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    said, was = random.integers(0, 4, 200), random.integers(0, 5, 200)
    found = answers.classes(said, was, 5)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(was, said))
    assert found["f1"] == pytest.approx(metrics.f1_score(was, said, average="macro"))
    assert found["matthews"] == pytest.approx(metrics.matthews_corrcoef(was, said))


def test_one_class_only_has_no_matthews():
    assert answers.classes([0, 0], [0, 0], 2) == {"accuracy": 1.0, "f1": 1.0, "matthews": 0.0}


def test_numbers_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 9, 50).astype(float), random.normal(size=50)
    found = answers.numbers(x, y)
    assert found["pearson"] == pytest.approx(stats.pearsonr(x, y).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_a_constant_has_no_correlation():
    found = answers.numbers([1.0, 1.0], [0.0, 2.0])
    assert np.isnan(found["spearman"]) and found["mse"] == 1.0


def test_confusion_by_hand():
    assert answers.confusion([1, 1, 0], [1, 0, 0], 2).tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        (["O", "B-a", "I-a", "I-b", "O"], {(1, 3, "a"), (3, 4, "b")}),
        (["B-a", "B-a"], {(0, 1, "a"), (1, 2, "a")}),
        (["O", "O"], set()),
        (["I-a", "I-a"], {(0, 2, "a")}),
    ],
)
def test_entities_by_hand(tags, found):
    assert answers.entities(tags) == found


def test_entity_f1_counts_whole_entities():
    # Said 3 (one with a wrong end), right 2, both 1.
    found = answers.entity_f1([["B-a", "I-a", "O", "B-b", "B-c"]], [["B-a", "O", "O", "B-b", "O"]])
    assert found == {"precision": pytest.approx(1 / 3), "recall": 0.5, "f1": pytest.approx(0.4)}
    assert answers.entity_f1([["O"]], [["O"]])["f1"] == 0.0


def test_spans_take_the_best_answer():
    assert answers.spans(["The Denver Broncos!"], [["Denver", "denver broncos"]]) == {"exact": 1.0, "f1": 1.0}
    # 丹佛野马 against 丹佛: two characters of four and of two: P = 1/2, R = 1.
    assert answers.spans(["丹佛野马"], [["丹佛"]]) == {"exact": 0.0, "f1": pytest.approx(2 / 3)}
    assert answers.spans([""], [[]]) == {"exact": 1.0, "f1": 1.0}
    assert answers.spans(["x"], [[]]) == {"exact": 0.0, "f1": 0.0}


def test_rouge_l_by_hand():
    # Longest common subsequence b d of a b c d and b x d: P = 2/4, R = 2/3.
    assert answers.rouge_l("ab bb cc dd", "bb xx dd") == pytest.approx(4 / 7)
    assert answers.rouge_l("", "x") == 0.0


def test_chrf_of_the_same_text_is_one():
    assert answers.chrf(["a made-up title"], ["a made-up title"]) == pytest.approx(1)
    assert answers.chrf(["abc"], ["xyz"]) == 0.0
    assert answers.chrf([""], [""]) == 0.0


def test_chrf_weighs_recall_more():
    # "ab" against "abcd", orders 1 and 2: P = (1 + 1) / 2, R = (2/4 + 1/3) / 2 = 5/12; F2 = 5 P R / (4 P + R).
    assert answers.chrf(["ab"], ["abcd"]) == pytest.approx(5 * 5 / 12 / (4 + 5 / 12))


def test_retrieval_counts_ties_against():
    found = answers.retrieval(np.ones((1, 3)), np.array([1]), cut_offs=(1, 3))
    assert found == {"recall@1": 0.0, "recall@3": 1.0, "mrr": pytest.approx(1 / 3)}
