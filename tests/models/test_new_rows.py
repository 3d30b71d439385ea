"""Vocabulary extension: mean rows in both tables, nothing else moves, what is tied stays tied."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from models import build
from models.language.vocabulary import mean_rows

V, IDS = 23, torch.arange(1, 9)[None]
PIECES = [[3, 4, 5], [7], [7, 7, 1]]


def made(tied: bool, rows: int = V):
    torch.manual_seed(0)
    if tied:
        return GPT2LMHeadModel(GPT2Config(vocab_size=rows, n_embd=8, n_layer=1, n_head=2, n_positions=16)).eval()
    config = LlamaConfig(
        vocab_size=rows, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    return LlamaForCausalLM(config).eval()


def test_mean_rows_by_hand():
    table = torch.tensor([[1.0, 0.0], [2.0, 4.0], [6.0, 8.0]])
    assert mean_rows(table, [[0, 1, 2], [2]]).tolist() == [[3.0, 4.0], [6.0, 8.0]]


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_new_rows_are_means_and_old_logits_stay(tied):
    model = made(tied)
    before = model(input_ids=IDS).logits
    report = build("language", "vocabulary")(model, PIECES, V)
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert len(table) == len(head) == model.config.vocab_size == V + 3 and report["rows"] == V + 3
    assert (head is table) == tied == bool(report["tied"])
    for rows in (table, head):
        torch.testing.assert_close(rows[V], (rows[3] + rows[4] + rows[5]) / 3)
        assert torch.equal(rows[V + 1], rows[7])
        torch.testing.assert_close(rows[V + 2], (2 * rows[7] + rows[1]) / 3)
    assert (model(input_ids=IDS).logits[..., :V] - before).abs().max() == 0
    norm = table[V:].norm(dim=1).mean() / table[:V].norm(dim=1).mean()
    assert report["input_norm"] == pytest.approx(norm.item(), rel=1e-5)


@torch.no_grad()
def test_padded_tables_are_filled_not_lengthened():
    model = made(tied=False, rows=32)
    old = model.get_input_embeddings().weight.clone()
    build("language", "vocabulary")(model, PIECES, V)
    table = model.get_input_embeddings().weight
    assert len(table) == 32 and torch.equal(table[:V], old[:V]) and torch.equal(table[V + 3 :], old[V + 3 :])
    assert torch.equal(table[V + 1], table[7])


@torch.no_grad()
def test_random_rows_are_drawn_by_the_seed():
    one, same, other = made(False), made(False), made(False)
    for model, seed in ((one, 1), (same, 1), (other, 2)):
        build("language", "vocabulary", rows="random", seed=seed)(model, [[1]] * 400, V)
    rows = [model.get_input_embeddings().weight[V:] for model in (one, same, other)]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    assert rows[0].std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(rows[0], one.get_output_embeddings().weight[V:])


@torch.no_grad()
def test_a_bias_of_the_head_is_extended_too():
    model = made(False)
    head = torch.nn.Linear(8, V)
    head.bias.copy_(torch.arange(V))
    model.set_output_embeddings(head)
    build("language", "vocabulary")(model, PIECES, V)
    assert model.get_output_embeddings().bias[V:].tolist() == [4.0, 7.0, 5.0]


@pytest.mark.parametrize(
    ("pieces", "first", "said"),
    [([[1], []], V, "1 of 2 new tokens have no pieces"), ([[V]], V, "reach 23"), ([[1]], V + 9, "has 23 rows")],
)
def test_pieces_that_cannot_be(pieces, first, said):
    with pytest.raises(ValueError, match=said):
        build("language", "vocabulary")(made(False), pieces, first)


@pytest.mark.parametrize(("settings", "said"), [({"rows": "zero"}, "mean, random"), ({"std": 0.0}, "std must be")])
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        build("language", "vocabulary", **settings)
