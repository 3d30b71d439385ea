"""The targets of fine-tuning: a number by hand each, padding that never counts, sums that add up, bad labels."""

import math

import pytest
import torch

from models import build
from models.components._pool import pooled
from models.components._rows import Rows

WIDTH = 4


def rows_of(mask) -> Rows:
    mask = torch.tensor(mask, dtype=torch.bool)
    return Rows.read({"ids": torch.zeros(mask.shape, dtype=torch.long), "mask": mask})


def head(name: str, width: int, weight, **settings):
    """A target whose last layer is `weight`, without dropout, tanh and bias."""
    target = build("components.target", name, width, **settings)
    with torch.no_grad():
        target.head.weight.copy_(torch.tensor(weight))
    return target


@pytest.mark.parametrize(("how", "value"), [("first", 2.0), ("last", 6.0), ("mean", 3.0), ("max", 6.0)])
def test_pools_by_hand_whatever_the_padding(how, value):
    for left, right in ((0, 2), (2, 0), (1, 1)):
        mask = [[0] * left + [1, 1, 1] + [0] * right]
        hidden = torch.tensor([[9.0] * left + [2.0, 1.0, 6.0] + [9.0] * right]).unsqueeze(-1)
        assert pooled(hidden, rows_of(mask), how).item() == pytest.approx(value)


def test_regression_by_hand():
    # Predictions 2 * 1 = 2 and 2 * 3 = 6 against 3 and 5, the third row has no label: 1 + 1.
    target = head("regression", 1, [[2.0]], transform=False, bias=False, dropout=0.0)
    hidden, rows = torch.tensor([[[1.0]], [[3.0]], [[7.0]]]), rows_of([[1], [1], [1]])
    batch = {"labels_regression": torch.tensor([3.0, 5.0, math.nan])}
    loss, terms = target(hidden, rows, batch)
    assert (loss.item(), terms["absolute"].item(), target.count(batch).item()) == (2.0, 2.0, 2.0)
    assert target.predict(hidden, rows).tolist() == [[2.0], [6.0], [14.0]]


def test_regression_refuses_labels_of_another_width():
    target = build("components.target", "regression", WIDTH, outputs=2)
    with pytest.raises(ValueError, match="1 numbers a row, the head 2"):
        target(torch.randn(3, 2, WIDTH), rows_of([[1, 1]] * 3), {"labels_regression": torch.zeros(3)})


def test_tagging_by_hand():
    # Logits (0, h): at h = ln 3, class 1 has 3/4; at h = 0 each has 1/2. The place without a label costs nothing.
    target = head("tagging", 1, [[0.0], [1.0]], classes=2, bias=False, dropout=0.0)
    hidden = torch.tensor([[[math.log(3)], [0.0], [5.0]]])
    batch = {"labels_tagging": torch.tensor([[1, 0, -100]])}
    loss, terms = target(hidden, rows_of([[1, 1, 1]]), batch)
    assert loss.item() == pytest.approx(math.log(4 / 3) + math.log(2))
    assert (terms["correct"].item(), target.count(batch).item()) == (2, 2)


def test_span_by_hand():
    # Starts (ln 3, 0) and padding: -ln 3/4. Ends (0, 0): -ln 1/2. Half of both.
    target = head("span", 2, [[1.0, 0.0], [0.0, 1.0]], bias=False)
    hidden = torch.tensor([[[math.log(3), 0.0], [0.0, 0.0], [50.0, 50.0]]])
    batch = {"labels_span": torch.tensor([[0, 1]])}
    loss, terms = target(hidden, rows_of([[1, 1, 0]]), batch)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    assert target.count(batch).item() == 1
    assert target.predict(hidden, rows_of([[1, 1, 0]])).argmax(1)[0, 0].item() == 0  # not the padding, though larger


def test_span_refuses_a_label_on_padding():
    target = build("components.target", "span", WIDTH)
    with pytest.raises(ValueError, match="padding"):
        target(torch.randn(1, 3, WIDTH), rows_of([[1, 1, 0]]), {"labels_span": torch.tensor([[0, 2]])})


def test_choice_by_hand_with_unequal_options():
    # Question 0: options ln 2, 0, 0 with the first right: 2 / 4. Question 1: 0, ln 3 with the second right: 3 / 4.
    target = head("choice", 1, [[1.0]], transform=False, bias=False, dropout=0.0)
    hidden = torch.tensor([math.log(2), 0.0, 0.0, 0.0, math.log(3)]).view(5, 1, 1)
    batch = {"labels_choice": torch.tensor([1, 0, 0, 0, 1]), "questions": torch.tensor([0, 0, 0, 1, 1])}
    loss, terms = target(hidden, rows_of([[1]] * 5), batch)
    assert loss.item() == pytest.approx(math.log(2) + math.log(4 / 3))
    assert (terms["correct"].item(), target.count(batch).item()) == (2, 2)


def test_choice_gradient_is_that_of_plain_cross_entropy():
    torch.manual_seed(0)
    target = build("components.target", "choice", WIDTH, dropout=0.0)
    hidden, rows = torch.randn(6, 3, WIDTH, requires_grad=True), rows_of([[1, 1, 1]] * 6)
    label = torch.tensor([2, 0])
    batch = {"labels_choice": torch.eye(3, dtype=torch.long)[label].flatten(), "questions": torch.arange(6) // 3}
    plain = torch.nn.functional.cross_entropy(target.predict(hidden, rows).view(2, 3), label, reduction="sum")
    ours, _ = target(hidden, rows, batch)
    for one, other in zip(torch.autograd.grad(plain, hidden), torch.autograd.grad(ours, hidden), strict=True):
        torch.testing.assert_close(one, other)


def test_choice_refuses_a_question_without_answer():
    target = build("components.target", "choice", WIDTH)
    batch = {"labels_choice": torch.tensor([1, 0, 0, 0]), "questions": torch.tensor([0, 0, 1, 1])}
    with pytest.raises(ValueError, match="exactly one right option"):
        target(torch.randn(4, 2, WIDTH), rows_of([[1, 1]] * 4), batch)


def test_contrast_by_hand():
    # Anchors along x and y; partners x and x. Cosines (1, 1) and (0, 0): both rows say 1/2. Columns: the first partner
    # prefers anchor x by e, the second does not prefer anchor y: ln(1 + 1/e) and ln(1 + e).
    target = build("components.target", "contrast", 2, temperature=1.0)
    hidden = torch.tensor([[3.0, 0.0], [0.0, 2.0], [5.0, 0.0], [7.0, 0.0]]).unsqueeze(1)
    batch = {"views": torch.tensor([0, 0, 1, 1])}
    loss, terms = target(hidden, rows_of([[1]] * 4), batch)
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert target.count(batch).item() == 2
    both = build("components.target", "contrast", 2, temperature=1.0, symmetric=True)
    columns = math.log(1 + math.exp(-1)) + math.log(1 + math.e)
    assert both(hidden, rows_of([[1]] * 4), batch)[0].item() == pytest.approx((2 * math.log(2) + columns) / 2)


def test_contrast_hard_negatives_are_columns():
    # One anchor, a partner and a hard negative, both at cosine 1: 1/2 instead of certainty.
    target = build("components.target", "contrast", 2, temperature=1.0)
    hidden = torch.tensor([[[1.0, 0.0]]] * 3)
    loss, _ = target(hidden, rows_of([[1]] * 3), {"views": torch.tensor([0, 1, 2])})
    assert loss.item() == pytest.approx(math.log(2))


def test_contrast_of_two_streams_is_that_of_one():
    torch.manual_seed(0)
    target = build("components.target", "contrast", WIDTH, pool="mean", symmetric=True)
    first, second = torch.randn(3, 2, WIDTH), torch.randn(3, 2, WIDTH)
    rows = rows_of([[1, 1]] * 3)
    one, _ = target(torch.cat([first, second]), rows_of([[1, 1]] * 6), {"views": torch.tensor([0, 0, 0, 1, 1, 1])})
    two, _ = target((first, second), (rows, rows), {"first_ids": torch.zeros(3, 2, dtype=torch.long)})
    torch.testing.assert_close(one, two)
    assert target.count({"first_ids": torch.zeros(3, 2)}).item() == 3


def test_contrast_reads_without_its_training_layer():
    torch.manual_seed(0)
    target = build("components.target", "contrast", WIDTH, transform=True)
    hidden, rows = torch.randn(2, 3, WIDTH), rows_of([[1, 1, 1]] * 2)
    torch.testing.assert_close(target.predict(hidden, rows), torch.nn.functional.normalize(hidden[:, 0], dim=-1))
    loss, _ = target(hidden, rows, {"views": torch.tensor([0, 1])})
    assert torch.autograd.grad(loss, target.pool.weight)[0].shape == (WIDTH, WIDTH)


@pytest.mark.parametrize(
    ("settings", "words"), [({"pool": "middle"}, "first, last, mean, max"), ({"temperature": 0.0}, "above 0")]
)
def test_contrast_refuses(settings, words):
    with pytest.raises(ValueError, match=words):
        build("components.target", "contrast", WIDTH, **settings)


def test_contrast_refuses_anchors_without_partner():
    target = build("components.target", "contrast", WIDTH)
    with pytest.raises(ValueError, match="2 anchors and 1 partners"):
        target(torch.randn(3, 2, WIDTH), rows_of([[1, 1]] * 3), {"views": torch.tensor([0, 0, 1])})


LABELS = {
    "regression": {"labels_regression": torch.tensor([1.0, 2.0, 3.0])},
    "tagging": {"labels_tagging": torch.tensor([[0, 1, -100, -100], [1, -100, -100, -100], [0, 1, 1, 0]])},
    "span": {"labels_span": torch.tensor([[0, 1], [0, 0], [2, 3]])},
    "choice": {"labels_choice": torch.tensor([1, 1, 1]), "questions": torch.arange(3)},
    "contrast": {"views": torch.tensor([0, 1, 2])},
}
SETTINGS = {"tagging": {"classes": 2}}


@pytest.mark.parametrize("name", LABELS)
def test_padding_never_counts(name):
    torch.manual_seed(0)
    target = build("components.target", name, WIDTH, **SETTINGS.get(name, {})).eval()
    mask = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    hidden, rows = torch.randn(3, 4, WIDTH), rows_of(mask)
    noisy = hidden.where(rows.mask.unsqueeze(-1), 99.0)
    torch.testing.assert_close(target(hidden, rows, LABELS[name])[0], target(noisy, rows, LABELS[name])[0])


@pytest.mark.parametrize("name", ["regression", "tagging", "span"])
def test_sums_add_up_over_micro_batches(name):
    torch.manual_seed(0)
    target = build("components.target", name, WIDTH, **SETTINGS.get(name, {})).eval()
    hidden, rows = torch.randn(3, 4, WIDTH), rows_of([[1, 1, 1, 1]] * 3)
    whole, _ = target(hidden, rows, LABELS[name])
    cut = lambda part: {key: value[part] for key, value in LABELS[name].items()}
    parts = [target(hidden[[i]], rows_of([[1, 1, 1, 1]]), cut([i]))[0] for i in range(3)]
    torch.testing.assert_close(whole, sum(parts))
    assert target.count(LABELS[name]) == sum(target.count(cut([i])) for i in range(3))
