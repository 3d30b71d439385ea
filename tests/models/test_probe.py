"""Retrieval of translations: pooled states and accuracy by hand, ties shared, padding and batches without effect."""

import pytest
import torch

from models.language.probe import Probe, accuracy
from tests.models._bigram import bigram, small

EVEN = ([1 / 3] * 3,) * 3


def test_pooled_states_by_hand():
    # Embeddings are unit vectors, so a mean counts tokens; the second layer doubles them.
    layers = Probe(bigram(*EVEN), length=8).pooled([[0, 0, 1], [2]])
    torch.testing.assert_close(layers[0], torch.tensor([[2 / 3, 1 / 3, 0], [0, 0, 1]]))
    torch.testing.assert_close(layers[1], 2 * layers[0])


def test_accuracy_by_hand():
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    second = torch.tensor([[2.0, 0.1], [1.0, 1.2], [0.0, 3.0]])
    # cosines: row 0 (0.999, 0.640, 0) hits; row 1 (0.05, 0.768, 1) finds 2; row 2 (0.742, 0.996, 0.707) finds 1.
    # Back: 0 finds 0, 1 finds 2, 2 finds 1.
    torch.testing.assert_close(accuracy(first, second), torch.tensor([1 / 3, 1 / 3]))
    torch.testing.assert_close(accuracy(first, 5 * first), torch.tensor([1.0, 1.0]))


def test_ways_differ():
    first = torch.tensor([[1.0, 0.0], [0.9, 0.5]])
    second = torch.tensor([[1.0, 0.2], [1.0, 0.25]])
    # Cosines: 0 with 0 and 1: 0.981, 0.970; 1 with 0 and 1: 0.952, 0.966. Forth, both are right; back, 1 finds 0.
    torch.testing.assert_close(accuracy(first, second), torch.tensor([1.0, 0.5]))


def test_a_model_that_tells_nothing_apart_scores_chance():
    torch.testing.assert_close(accuracy(torch.ones(4, 3), torch.ones(4, 3)), torch.tensor([0.25, 0.25]))


def test_equal_sentences_are_found_in_every_layer_and_by_any_batch():
    sentences = [[1, 2], [3, 4, 5, 6], [7], [8, 9, 10]]
    model = small()
    for found in Probe(model, length=16, batch=2).retrieval(sentences, sentences):
        assert found.shape == (3, 2)  # embeddings and two layers
        assert (found == 1).all()
    one, all_at_once = (Probe(model, 16, batch=batch).pooled(sentences) for batch in (1, 9))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)


def test_centring_takes_the_language_away():
    # Two tokens, so means are (0.2, 0.8), (0, 1) and (0.8, 0.2), (0.6, 0.4). Cosines: 0.47, 0.74; 0.24, 0.55: both find
    # the second. Back: 0.47, 0.24; 0.74, 0.55: both find the first. Without the means of (0.1, 0.9) and (0.7, 0.3) all
    # are (0.1, -0.1) or its opposite.
    first, second = [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], [[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]
    plain, centred = Probe(bigram([0.5, 0.5], [0.5, 0.5]), length=16).retrieval(first, second)
    assert plain.tolist() == [[0.5, 0.5]] * 2
    assert centred.tolist() == [[1.0, 1.0]] * 2


def test_what_is_too_long_is_cut():
    long, short = Probe(small(), length=2).pooled([[1, 2, 3], [4]]), Probe(small(), length=8).pooled([[1, 2], [4]])
    torch.testing.assert_close(long, short)


def test_an_empty_sentence_is_named():
    with pytest.raises(ValueError, match="1 of 2 sentences have no token, the first is 1"):
        Probe(bigram(*EVEN), 8).pooled([[1], []])
