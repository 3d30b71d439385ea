"""Inputs: the folded first layer is the plain one."""

import pytest
import torch
import torch.nn.functional as F

from models.recommend._inputs import Inputs

SIZES = [2, 3, 500, 10]  # 64 rows repeat all but the third


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def batch(rows, sizes=SIZES, dense=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    categorical = torch.stack([torch.randint(0, n, (rows,), generator=generator) for n in sizes], 1)
    return categorical.int(), torch.rand(rows, dense, generator=generator, dtype=torch.float64)


def layer(inputs, outputs=7, seed=1):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs.width, generator=generator, dtype=torch.float64)
    return weight.requires_grad_(), torch.randn(outputs, generator=generator, dtype=torch.float64).requires_grad_()


def folded_fields(inputs, categorical):
    counts = [len(column.unique()) for column in categorical.T]
    return [inputs._pays(slice(0, count), len(categorical)) for count in counts]


def gradients(inputs, parameters, output):
    probe = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return torch.autograd.grad((output * probe).sum(), [*inputs.parameters(), *parameters])


def test_by_hand():
    inputs = Inputs([2, 2], dense=1, embedding=1)
    inputs.table.data = torch.tensor([[1.0], [2.0], [10.0], [20.0]])
    e = inputs(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.5], [0.25]]))
    assert e.tolist() == [[0.5, 1.0, 20.0], [0.25, 2.0, 10.0]]
    assert inputs.width == 3


def test_projection_by_hand():
    inputs = Inputs([2], dense=1, embedding=32)
    inputs.table.data = torch.tensor([[1.0] * 32, [2.0] * 32])
    categorical = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 1, 1])[:, None]
    assert folded_fields(inputs, categorical) == [True]
    out = inputs.project(categorical, torch.full((10, 1), 3.0), torch.tensor([[2.0] + [0.5] * 32]), torch.tensor([1.0]))
    # 1 + 2 * 3 + 32 * 0.5 * (1 or 2)
    assert out.squeeze(1).tolist() == [23.0, 39.0, 39.0, 23.0, 39.0, 39.0, 39.0, 39.0, 39.0, 39.0]


@pytest.mark.parametrize("project_dense", [False, True])
@pytest.mark.parametrize(
    ("rows", "sizes", "expected"),
    [
        (64, SIZES, [True, True, False, True]),
        (64, [2, 3], [True, True]),
        (4, [10**6, 10**6], [False, False]),
        (1, SIZES, [False] * 4),
    ],
)
def test_project_is_the_plain_linear_layer(rows, sizes, expected, project_dense):
    inputs = Inputs(sizes if max(sizes) < 10**6 else [5000, 5000], 5, 16, project_dense).double()
    categorical, numerical = batch(rows, inputs.sizes)
    assert folded_fields(inputs, categorical) == expected
    weight, bias = layer(inputs)
    numerical.requires_grad_()
    plain = F.linear(inputs(categorical, numerical), weight, bias)
    folded = inputs.project(categorical, numerical, weight, bias)
    assert torch.allclose(folded, plain, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        gradients(inputs, [weight, bias, numerical], folded),
        gradients(inputs, [weight, bias, numerical], plain),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("sizes", [SIZES, [500, 400]])
def test_parts_are_the_split_projection_and_unused_ones_have_no_gradient(sizes):
    inputs = Inputs(sizes, 5, 16).double()
    categorical, numerical = batch(64, sizes)
    assert any(folded_fields(inputs, categorical)) == (sizes == SIZES)
    weight, bias = layer(inputs, 9)
    whole = inputs.project(categorical, numerical, weight, bias)
    parts = inputs.project_split(categorical, numerical, weight, bias, [4, 3, 2])
    assert [p.shape for p in parts] == [(64, 4), (64, 3), (64, 2)]
    assert all(p.is_contiguous() for p in parts)
    assert torch.allclose(torch.cat(parts, -1), whole)
    parts[1].sum().backward()
    assert weight.grad[:4].abs().max() == weight.grad[7:].abs().max() == 0
    assert weight.grad[4:7].abs().min() > 0
    assert bias.grad.tolist() == [0] * 4 + [64] * 3 + [0] * 2


def test_no_bias_and_no_numerical_columns():
    inputs = Inputs([3, 4], 0, 32).double()
    categorical, numerical = batch(50, inputs.sizes, dense=0)
    weight, _ = layer(inputs)
    assert torch.allclose(
        inputs.project(categorical, numerical, weight), F.linear(inputs(categorical, numerical), weight)
    )


def test_no_fields():
    inputs = Inputs([], 4, 8)
    numerical = torch.rand(3, 4)
    assert torch.equal(inputs(torch.empty(3, 0, dtype=torch.long), numerical), numerical)
    weight = torch.rand(2, 4)
    assert torch.allclose(inputs.project(torch.empty(3, 0, dtype=torch.long), numerical, weight), numerical @ weight.T)


def test_gradient_check():
    inputs = Inputs([2, 3, 30], 2, 16).double()
    categorical, numerical = batch(20, inputs.sizes, dense=2)
    assert folded_fields(inputs, categorical) == [True, True, False]
    weight, bias = layer(inputs, 3)

    def project(table, weight, bias):
        return torch.func.functional_call(
            Projected(inputs), {"inputs.table": table}, (categorical, numerical, weight, bias)
        )

    assert torch.autograd.gradcheck(project, (inputs.table, weight, bias), fast_mode=False)


class Projected(torch.nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.inputs = inputs

    def forward(self, *batch):
        return self.inputs.project(*batch)


def test_frozen_parts_get_no_gradient():
    inputs = Inputs(SIZES, 5, 16).double()
    inputs.requires_grad_(False)
    weight, bias = layer(inputs)
    inputs.project(*batch(64), weight, bias).sum().backward()
    assert inputs.table.grad is None
    assert weight.grad.abs().sum() > 0
    inputs.requires_grad_(True)
    inputs.project(*batch(64), weight.detach(), bias.detach()).sum().backward()
    assert inputs.table.grad.abs().sum() > 0


def test_gradient_reaches_used_rows_only():
    inputs = Inputs([10, 10], 5, 16).double()
    weight, _ = layer(inputs)
    categorical = torch.tensor([[0, 3], [7, 3]]).repeat(20, 1)
    inputs.project(categorical, torch.rand(40, 5, dtype=torch.float64), weight).sum().backward()
    assert inputs.table.grad.abs().sum(1).nonzero().flatten().tolist() == [0, 7, 13]


def test_unknown_row_is_each_fields_own():
    inputs = Inputs([4, 4], 0, 3)
    e = inputs(torch.zeros(1, 2, dtype=torch.long), torch.empty(1, 0))
    assert torch.equal(e[0], torch.cat([inputs.table[0], inputs.table[4]]))


def test_autocast_multiplies_in_bfloat16_and_keeps_float32_gradients():
    inputs = Inputs(SIZES, 5, 16)
    categorical, numerical = batch(64)
    numerical = numerical.float()
    weight = torch.randn(7, inputs.width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    exact = inputs.project(categorical, numerical, weight)
    with torch.autocast("cpu", torch.bfloat16):
        plain = F.linear(inputs(categorical, numerical), weight)
        folded = inputs.project(categorical, numerical, weight)
    assert folded.dtype == plain.dtype == torch.bfloat16
    assert (folded - exact).abs().max() <= 2 * (plain - exact).abs().max() + 0.02 * exact.abs().max()
    ours, theirs = (gradients(inputs, [weight], out.float()) for out in (folded, plain))
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 0.02 * b.abs().max()


@pytest.mark.parametrize(("row", "value"), [(1, 3), (0, -1), (2, 10**6)])
def test_an_id_outside_its_table_is_refused(row, value):
    inputs = Inputs([5, 3], 0, 2)
    categorical = torch.zeros(4, 2, dtype=torch.int32)
    categorical[row, 1] = value
    for call in (inputs, lambda *rows: inputs.project(*rows, torch.rand(2, 4))):
        with pytest.raises(ValueError, match=rf"1 ids .* row {row}, field 1: {value}, .* rows 0..2"):
            call(categorical, torch.empty(4, 0))


def test_a_missing_column_is_refused():
    with pytest.raises(ValueError, match="expected 2 categorical columns, got 1"):
        Inputs([5, 3], 0, 2)(torch.zeros(4, 1, dtype=torch.long), torch.empty(4, 0))


@pytest.mark.parametrize("arguments", [([], 0, 4), ([0], 1, 4), ([3], 1, 0), ([3], -1, 4)])
def test_empty_inputs_are_refused(arguments):
    with pytest.raises(ValueError, match="inputs need"):
        Inputs(*arguments)
