import math

import pytest
import torch
from torch.nn import functional as F

from models import build
from models.components._rows import Rows

B, T, WIDTH, VOCABULARY = 3, 5, 4, 9


def target(name, **settings):
    torch.manual_seed(0)
    part = build("components.target", name, WIDTH, **settings)
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)
    return part.eval()


def case(label):
    torch.manual_seed(1)
    hidden, rows = torch.randn(B, T, WIDTH), Rows.of((B, T), mask=torch.arange(T) < torch.tensor([[5], [3], [4]]))
    labels = torch.randint(VOCABULARY, (B, T)).where(torch.rand(B, T) < 0.5, -100)
    return hidden, rows, {label: labels}


@pytest.mark.parametrize("name", ["mlm", "lm"])
def test_token_targets_equal_cross_entropy_at_labelled_places(name):
    part = target(name, vocabulary=VOCABULARY)
    hidden, rows, batch = case(part.label)
    labels = batch[part.label]
    loss, terms = part(hidden, rows, batch)
    logits = part.predict(hidden, rows)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
    assert terms["correct"] == (logits.argmax(-1) == labels).sum()
    assert part.count(batch) == (labels != -100).sum() and part.count(batch).dtype == torch.float32


@pytest.mark.parametrize("name", ["mlm", "lm"])
def test_nothing_labelled_costs_nothing(name):
    part = target(name, vocabulary=VOCABULARY)
    hidden, rows, batch = case(part.label)
    hidden.requires_grad_()
    loss, _ = part(hidden, rows, {part.label: torch.full((B, T), -100)})
    loss.backward()
    assert loss.item() == 0 and not hidden.grad.any()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in part.parameters())


def test_mlm_forms_logits_at_labelled_places_only(monkeypatch):
    part = target("mlm", vocabulary=VOCABULARY)
    hidden, rows, batch = case(part.label)
    seen = []
    part.transform.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    part(hidden, rows, batch)
    assert seen == [(int(part.count(batch)), WIDTH)]


def test_mlm_head_by_hand():
    # The transform and the norm's weight are identities: relu(2, -1) = (2, 0), normed (1, -1).
    part = build("components.target", "mlm", 2, vocabulary=2, act="relu", eps=0.0)
    with torch.no_grad():
        part.transform.weight.copy_(torch.eye(2))
        part.transform.bias.zero_()
        part.head.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        part.head.bias.copy_(torch.tensor([0.5, 0.0]))
    hidden, rows = torch.tensor([[[2.0, -1.0]]]), Rows.of((1, 1))
    torch.testing.assert_close(part.predict(hidden, rows), torch.tensor([[[1.5, -1.0]]]))
    loss, _ = part(hidden, rows, {"labels_mlm": torch.tensor([[1]])})
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2.5)))


def test_lm_tells_smoothing_and_z_loss_apart():
    plain = target("lm", vocabulary=VOCABULARY)
    hidden, rows, batch = case("labels_lm")
    wanted, _ = plain(hidden, rows, batch)
    part = target("lm", vocabulary=VOCABULARY, smoothing=0.1, z_loss=0.01)
    loss, terms = part(hidden, rows, batch)
    torch.testing.assert_close(terms["nll"], wanted)
    logits, labels = plain.predict(hidden, rows)[batch["labels_lm"] != -100], batch["labels_lm"]
    labels = labels[labels != -100]
    z = 0.01 * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(terms["z"], z)
    torch.testing.assert_close(loss, z + F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1))
    assert set(plain(hidden, rows, batch)[1]) == {"correct"}


def test_lm_rescales_and_has_a_bias_when_told():
    part = target("lm", vocabulary=VOCABULARY, rescale=True, head_bias=True)
    hidden, rows, _ = case("labels_lm")
    torch.testing.assert_close(part.predict(hidden, rows), hidden / 2 @ part.head.weight.T + part.head.bias)


def test_sentence_prediction_by_hand():
    part = build("components.target", "sp", 1)
    with torch.no_grad():
        part.pool.weight.fill_(1)
        part.pool.bias.zero_()
        part.head.weight.copy_(torch.tensor([[0.0], [1.0]]))
        part.head.bias.zero_()
    hidden = torch.tensor([[[0.5], [9.0]], [[1.0], [9.0]], [[1.0], [9.0]]])
    batch = {"labels_sp": torch.tensor([1, 0, -100])}
    loss, terms = part(hidden, Rows.of((3, 2)), batch)
    costs = math.log(1 + math.exp(-math.tanh(0.5))) + math.log(1 + math.exp(math.tanh(1)))
    assert loss.item() == pytest.approx(costs)
    assert (terms["correct"], part.count(batch)) == (1, 2)


@pytest.mark.parametrize("pool", ["first", "last", "mean", "max"])
def test_classification_reads_real_places_only(pool):
    part = target("cls", labels=3, pool=pool, dropout=0.5)
    hidden, rows, _ = case("labels_mlm")
    noisy = hidden.where(rows.mask[..., None], 9.0)
    torch.testing.assert_close(part.predict(hidden, rows), part.predict(noisy, rows))
    labels = torch.tensor([2, -100, 0])
    loss, terms = part(hidden, rows, {"labels_cls": labels})
    logits = part.predict(hidden, rows)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels, reduction="sum"))
    assert terms["correct"] == (logits.argmax(-1) == labels).sum()
    assert part.train().predict(hidden, rows).shape == (B, 3)


def test_labels_that_are_not_there_or_do_not_fit():
    part = target("lm", vocabulary=VOCABULARY)
    hidden, rows, batch = case("labels_lm")
    for ask in (part.count, lambda fields: part(hidden, rows, fields)):
        with pytest.raises(LookupError, match="the batch has no labels_lm, only: labels_mlm"):
            ask({"labels_mlm": batch["labels_lm"]})
    with pytest.raises(ValueError, match=r"labels_lm is \(3, 4\), but what it labels is \(3, 5\)"):
        part(hidden, rows, {"labels_lm": batch["labels_lm"][:, 1:]})
    with pytest.raises(ValueError, match="smoothing must be in"):
        target("lm", vocabulary=VOCABULARY, smoothing=1.0)
