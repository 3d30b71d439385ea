"""Recurrent and gated convolution encoders and the two-way language model: numbers by hand, padding, documents."""

import math

import pytest
import torch
from torch import nn

from models import build, names
from models.components._recurrent import Sequences
from models.components._rows import Rows

ONE_WAY = ["rnn", "lstm", "gru", "gated_cnn"]
TWO_WAY = ["birnn", "bilstm", "bigru"]
WIDTH, TOKENS = 6, 7


def encoder(name: str, width: int = WIDTH, **settings) -> nn.Module:
    torch.manual_seed(0)
    return build("components.encoder", name, width, layers=2, **settings).eval()


def states(rows: int, tokens: int = TOKENS) -> torch.Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(1))


def rows_of(mask=None, documents=None, shape=(1, TOKENS)) -> Rows:
    mask = torch.tensor(mask).bool() if mask is not None else None
    documents = torch.tensor(documents) if documents is not None else None
    return Rows.of(shape if mask is None else mask.shape, mask=mask, documents=documents)


def test_every_recurrent_encoder_is_tested():
    assert set(names("components.encoder")) == {*ONE_WAY, *TWO_WAY, "transformer", "dual"}


def test_rnn_by_hand():
    # h_1 = tanh(1 x 1/2) = 0.46212, h_2 = tanh(1 x 1 + 2 h_1) = tanh(1.92424) = 0.95826; padding is no step
    rnn = build("components.encoder", "rnn", 1, layers=1, dropout=0.0)
    for parameter, value in zip(rnn.parameters(), (1.0, 2.0, 0.0, 0.0), strict=True):
        nn.init.constant_(parameter, value)
    hidden = rnn(torch.tensor([[[0.5], [9.0], [1.0]]]), rows_of([[1, 0, 1]]))
    assert hidden.flatten().tolist() == pytest.approx([math.tanh(0.5), 0.0, math.tanh(1 + 2 * math.tanh(0.5))])
    assert hidden[0, 2].item() == pytest.approx(0.95826, abs=1e-5)


def test_gated_cnn_by_hand():
    # two layers of h_t = (h_{t-1} + h_t) sigmoid(0) = (h_{t-1} + h_t) / 2 and one residual sum over both
    # 2, 4, 0 -> 1, 3, 2 -> 0.5, 2, 2.5 -> + the input: 2.5, 6, 2.5
    cnn = build("components.encoder", "gated_cnn", 1, layers=2, kernel=2, block=2, dropout=0.0)
    for layer in cnn.layers:
        nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([1.0, 1.0, 0.0, 0.0]).view(2, 1, 2))
    hidden = cnn(torch.tensor([[[2.0], [4.0], [0.0]]]), rows_of(shape=(1, 3)))
    assert hidden.flatten().tolist() == pytest.approx([2.5, 6.0, 2.5])


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_full_rows_are_torchs_own(name):
    module, hidden = encoder(name), states(3)
    torch.testing.assert_close(module(hidden, rows_of(shape=(3, TOKENS))), module.forwards(hidden)[0])


@pytest.mark.parametrize("name", ONE_WAY + TWO_WAY)
@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0, 1]])
def test_padding_is_as_if_absent(name, mask):
    module, hidden, real = encoder(name), states(1), torch.tensor([mask]).bool()
    padded = module(hidden, rows_of([mask]))
    alone = module(hidden[real][None], rows_of(shape=(1, 4)))
    torch.testing.assert_close(padded[real], alone[0])
    assert not padded[~real].any()
    torch.testing.assert_close(module(hidden.where(real[..., None], math.pi), rows_of([mask])), padded)


@pytest.mark.parametrize("name", ONE_WAY + TWO_WAY)
def test_documents_do_not_know_each_other(name):
    module, hidden = encoder(name), states(2)
    rows = rows_of([[1] * 7, [1, 1, 1, 1, 1, 0, 0]], [[0, 0, 1, 1, 1, 1, 2], [0, 0, 0, 1, 1, 1, 1]])
    together = module(hidden, rows)
    for row, start, stop in ((0, 0, 2), (0, 2, 6), (0, 6, 7), (1, 0, 3), (1, 3, 5)):
        alone = module(hidden[row : row + 1, start:stop], rows_of(shape=(1, stop - start)))
        torch.testing.assert_close(together[row : row + 1, start:stop], alone)
    assert not together[1, 5:].any()


def reads(module: nn.Module, place: int, half: slice) -> list[bool]:
    """Which of the input's places an output depends on."""
    hidden = states(1).requires_grad_()
    module(hidden, rows_of())[0, place, half].sum().backward()
    return hidden.grad[0].abs().sum(-1).gt(0).tolist()


@pytest.mark.parametrize("name", ONE_WAY)
def test_one_way_never_reads_ahead(name):
    assert reads(encoder(name), 3, slice(None)) == [True] * 4 + [False] * 3


@pytest.mark.parametrize("name", TWO_WAY)
def test_two_ways_never_meet(name):
    module = encoder(name)
    assert reads(module, 3, slice(0, WIDTH // 2)) == [True] * 4 + [False] * 3
    assert reads(module, 3, slice(WIDTH // 2, None)) == [False] * 3 + [True] * 4


def test_gated_cnn_reads_as_far_as_its_kernels():
    assert reads(encoder("gated_cnn", kernel=2), 5, slice(None)) == [False] * 3 + [True] * 3 + [False]


def test_sequences_there_and_back():
    rows = rows_of([[1, 0, 1, 1], [0, 0, 1, 0]], [[0, 0, 0, 1], [0, 0, 0, 0]])
    sequences = Sequences(rows)
    hidden = torch.arange(8.0).view(2, 4, 1)
    packed = sequences.gather(hidden)
    assert packed[..., 0].tolist() == [[0, 2, 0, 0], [3, 0, 0, 0], [6, 0, 0, 0]]
    assert sequences.reverse(packed)[0, :, 0].tolist() == [2, 0, 0, 0]
    assert torch.equal(sequences.reverse(sequences.reverse(packed)), packed)
    assert torch.equal(sequences.scatter(packed), hidden * rows.mask[..., None])


def test_bilm_by_hand():
    # the head is nothing but a bias (ln 3, 0), so p = (3/4, 1/4) in both directions
    # next tokens 0, 1: ln 4/3 + ln 4; previous tokens 0: ln 4/3; 3 labels, so each direction has 1 1/2
    target = build("components.target", "bilm", 2, vocabulary=2)
    nn.init.zeros_(target.head.weight)
    with torch.no_grad():
        target.head.bias.copy_(torch.tensor([math.log(3), 0.0]))
    batch = {"labels_bilm": torch.tensor([[[0, -100], [1, 0], [-100, -100]]])}
    total, terms = target(torch.zeros(1, 3, 2), rows_of(shape=(1, 3)), batch)
    assert total.item() == pytest.approx(2 * math.log(4 / 3) + math.log(4))
    assert terms["forward"].item() == pytest.approx(math.log(4 / 3) + math.log(4))
    assert terms["backward"].item() == pytest.approx(math.log(4 / 3))
    assert terms["correct"].item() == 1.0  # both zeros, halved
    assert target.count(batch).item() == 1.5


def test_bilm_counts_add_up_over_a_cut():
    target = build("components.target", "bilm", 4, vocabulary=5)
    label = torch.randint(-1, 5, (4, 3, 2), generator=torch.Generator().manual_seed(0))
    label[label < 0] = -100
    whole = target.count({"labels_bilm": label})
    assert sum(target.count({"labels_bilm": part}) for part in label.split(1)) == whole


def test_bilm_gives_each_half_its_own_labels():
    torch.manual_seed(0)
    target = build("components.target", "bilm", 4, vocabulary=5)
    hidden = torch.randn(1, 3, 4, requires_grad=True)
    label = torch.tensor([[[1, -100], [2, -100], [-100, -100]]])
    target(hidden, rows_of(shape=(1, 3)), {"labels_bilm": label})[0].backward()
    assert hidden.grad[0, :2, :2].all() and not hidden.grad[..., 2:].any() and not hidden.grad[0, 2].any()


def test_bilm_predicts_what_it_trains():
    torch.manual_seed(0)
    target, rows = build("components.target", "bilm", 4, vocabulary=5), rows_of(shape=(2, 3))
    hidden, label = torch.randn(2, 3, 4), torch.randint(5, (2, 3, 2))
    logits = target.predict(hidden, rows)
    assert logits.shape == (2, 3, 2, 5)
    expected = nn.functional.cross_entropy(logits.flatten(0, 2), label.flatten(), reduction="sum")
    torch.testing.assert_close(target(hidden, rows, {"labels_bilm": label})[0], expected)


@pytest.mark.parametrize("name", TWO_WAY)
def test_an_odd_width_is_refused(name):
    with pytest.raises(ValueError, match="odd"):
        build("components.encoder", name, 5)


@pytest.mark.parametrize("name", ["lstm", "gated_cnn"])
def test_no_layers_are_refused(name):
    with pytest.raises(ValueError, match="at least 1"):
        build("components.encoder", name, 4, layers=0)


def test_bilm_refuses_labels_of_another_shape():
    target = build("components.target", "bilm", 4, vocabulary=5)
    with pytest.raises(ValueError, match="labels_bilm"):
        target(torch.zeros(1, 3, 4), rows_of(shape=(1, 3)), {"labels_bilm": torch.zeros(1, 3, dtype=torch.long)})
