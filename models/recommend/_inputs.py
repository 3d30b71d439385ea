"""One row of ids and numbers -> one vector, and linear layers of that vector without the work that a batch repeats.

    e = [dense ; E_1[x_1] ; ... ; E_F[x_F]]
    e W^T = dense W_0^T + sum_f E_f[x_f] W_f^T = dense W_0^T + sum_f (E_f W_f^T)[x_f]

The right-hand form multiplies each *distinct* id of a batch once and looks the products up. 2,048 rows have 2 distinct
values of a flag and some 700 of a category, so most of a first layer's multiplications go; sums are taken in another
order, nothing else differs. The choice is made per field and batch, on the CPU only: a GPU multiplies faster than it
looks up. Ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Inputs"]

# What folding a field costs for each output, in multiplications of a matrix product: for a row of the batch, to add its
# looked-up number, forward and backward; for a distinct id, to keep its products. Measured on an AVX-512 processor with
# vectors of 16 to 128 numbers, in float32 and bfloat16.
ROW, DISTINCT = 8, 24
# Outputs computed at a time: the products of all distinct ids then stay in the processor's cache.
CHUNK = 512


class Inputs(nn.Module):
    """Embeds ids, joins the numbers to them: the first layer of every multi-task model.

    Args:
        sizes: rows of each field's table, row 0 ("unknown") included.
        dense: numerical columns M; may be 0.
        embedding: width d of a field's vectors.
        project_dense: True sends the numerical columns through one Linear(M, d), counted as one more field.

    Attributes:
        width: D = M + F d, or (F + 1) d with `project_dense`.

    Raises:
        ValueError: nothing to embed, or a size below 1.
    """

    def __init__(self, sizes: list[int], dense: int, embedding: int, project_dense: bool = False):
        super().__init__()
        if not (sizes or dense) or min([embedding, *sizes]) < 1 or dense < 0:
            raise ValueError(
                f"inputs need a column, and at least one row per table and one number per vector; "
                f"got sizes={sizes}, dense={dense}, embedding={embedding}"
            )
        self.sizes, self.dense, self.embedding = list(sizes), dense, embedding
        self.table = nn.Parameter(torch.empty(sum(sizes), embedding))
        nn.init.xavier_uniform_(self.table)
        self.linear = nn.Linear(dense, embedding) if project_dense and dense else None
        self.front = embedding if self.linear else dense  # columns of e before the first field
        self.width = self.front + len(sizes) * embedding
        # Not saved: they follow from the sizes, and a checkpoint's copy could only contradict them.
        self.register_buffer("size", torch.tensor(sizes, dtype=torch.int64), persistent=False)
        self.register_buffer("border", F.pad(self.size.cumsum(0), (1, 0)), persistent=False)

    def forward(self, categorical: Tensor, numerical: Tensor) -> Tensor:
        """e of every row.

        Args:
            categorical: (B, F) integer, ids of each field.
            numerical: (B, M) float.

        Returns:
            (B, D).

        Raises:
            ValueError: wrong number of columns, or an id outside its table (on a GPU: an assertion there).
        """
        return self._vector(self._rows(categorical), numerical)

    def project(self, categorical: Tensor, numerical: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """F.linear(self(categorical, numerical), weight, bias), cheaper: (B, O) for a weight (O, D)."""
        return self.project_split(categorical, numerical, weight, bias, [len(weight)])[0]

    def project_split(
        self, categorical: Tensor, numerical: Tensor, weight: Tensor, bias: Tensor | None, widths: list[int]
    ) -> tuple[Tensor, ...]:
        """`project(...).split(widths, -1)`: the first layers of several experts and gates.

        On a CPU each part is contiguous, cheaper than slices of one tensor: a part of some hundred columns stays in the
        cache for the batch norm and activation that follow, and no slice's gradient is padded with zeros.

        Args:
            categorical: (B, F) integer.
            numerical: (B, M) float.
            weight: (O, D).
            bias: (O,) or None.
            widths: of the parts; they sum to O.

        Returns:
            (B, width) for each width; under autocast in its type, products as well.
        """
        flat_BF = self._rows(categorical)
        if flat_BF.is_cuda or torch.compiler.is_compiling():
            return F.linear(self._vector(flat_BF, numerical), weight, bias).split(widths, -1)
        rows_R, place_BF = flat_BF.unique(return_inverse=True)
        ends = torch.searchsorted(rows_R, self.border).tolist()
        blocks = [slice(*pair) for pair in zip(ends, ends[1:], strict=False)]
        fold = [f for f, block in enumerate(blocks) if self._pays(block, len(flat_BF))]
        if not fold:
            e_BD = self._vector(flat_BF, numerical)
            biases = [None] * len(widths) if bias is None else bias.split(widths)
            return tuple(F.linear(e_BD, *layer) for layer in zip(weight.split(widths), biases, strict=True))
        rest = [f for f in range(len(blocks)) if f not in fold]
        distinct_Rd = F.embedding(rows_R, self.table)
        plain_BK = torch.cat([self._front(numerical), *(distinct_Rd[place_BF[:, f]] for f in rest)], -1)
        chunks = [[min(CHUNK, width - start) for start in range(0, width, CHUNK)] for width in widths]
        parts = _Folded.apply(
            [(blocks[f], self._columns(f)) for f in fold],
            [slice(0, self.front), *map(self._columns, rest)],
            place_BF[:, fold],
            [width for part in chunks for width in part],
            plain_BK,
            distinct_Rd,
            weight,
            weight.new_zeros(len(weight)) if bias is None else bias,
        )
        parts = iter(parts)
        return tuple(next(parts) if len(c) == 1 else torch.cat([next(parts) for _ in c], -1) for c in chunks)

    def _pays(self, block: slice, batch: int) -> bool:
        """Whether multiplying a field's distinct ids and looking them up is cheaper than multiplying every row."""
        distinct = block.stop - block.start
        return (batch - distinct) * self.embedding > ROW * batch + DISTINCT * distinct

    def _columns(self, field: int) -> slice:
        """A field's place in e."""
        start = self.front + field * self.embedding
        return slice(start, start + self.embedding)

    def _front(self, numerical: Tensor) -> Tensor:
        return self.linear(numerical) if self.linear else numerical

    def _vector(self, flat_BF: Tensor, numerical: Tensor) -> Tensor:
        return torch.cat([self._front(numerical), F.embedding(flat_BF, self.table).flatten(1)], -1)

    def _rows(self, categorical: Tensor) -> Tensor:
        """Rows of the one table that holds all fields: (B, F) int64."""
        if categorical.shape[-1] != len(self.sizes):
            raise ValueError(f"expected {len(self.sizes)} categorical columns, got {categorical.shape[-1]}")
        # Without this an id too large would silently read the next field's rows.
        outside = (categorical < 0) | (categorical >= self.size)
        if outside.is_cuda or torch.compiler.is_compiling():
            torch._assert_async(~outside.any(), "an id is outside its field's table")
        elif outside.any():
            row, field = outside.nonzero()[0].tolist()
            raise ValueError(
                f"{int(outside.sum())} ids are outside their tables, the first in row {row}, field {field}: "
                f"{int(categorical[row, field])}, but that table has rows 0..{self.sizes[field] - 1}; "
                f"encode the rows with the encoder that the model was trained with"
            )
        return categorical + self.border[:-1]


class _Folded(torch.autograd.Function):
    """sum_f (E_f W_f^T)[x_f] + plain W_plain^T + b, in parts.

    blocks: for each folded field its rows among the distinct ones and its columns of the weight.
    columns: of the weight, those that meet `plain`.
    place_BF: of each row and folded field, its row among the distinct ones.
    """

    @staticmethod
    def forward(ctx, blocks, columns, place_BF, widths, plain_BK, distinct_Rd, weight_OD, bias_O):
        dtype = _product_type(weight_OD)
        plain_BK, distinct_Rd = plain_BK.to(dtype), distinct_Rd.to(dtype)
        ctx.save_for_backward(place_BF, plain_BK, distinct_Rd, weight_OD)
        ctx.blocks, ctx.columns, ctx.widths = blocks, columns, widths
        ctx.set_materialize_grads(False)
        distinct, batch = len(distinct_Rd), len(plain_BK)
        # The plain product is one more looked-up row, so that all terms are added in one pass over the output.
        own_B1 = torch.arange(distinct, distinct + batch)[:, None]
        index_BF = torch.cat([place_BF, own_B1], -1)
        parts, product = [], plain_BK.new_empty(0, 0)
        for weight, bias in zip(weight_OD.split(widths), bias_O.split(widths), strict=True):
            weight = weight.to(dtype)
            if product.shape[1] != len(weight):  # else its memory serves again: new memory costs more than the lookup
                product = plain_BK.new_empty(distinct + batch, len(weight))
            for rows, fields in blocks:
                torch.mm(distinct_Rd[rows], weight[:, fields].mT, out=product[rows])
            torch.addmm(bias.to(dtype), plain_BK, _take(weight, columns).mT, out=product[distinct:])
            parts.append(F.embedding_bag(index_BF, product, mode="sum"))
        return tuple(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        place_BF, plain_BK, distinct_Rd, weight_OD = ctx.saved_tensors
        need_plain, need_distinct, need_weight, need_bias = ctx.needs_input_grad[4:]
        dtype, full = plain_BK.dtype, weight_OD.dtype
        d_plain = torch.zeros_like(plain_BK, dtype=full) if need_plain else None
        d_distinct = torch.zeros_like(distinct_Rd, dtype=full) if need_distinct else None
        d_weight = torch.zeros_like(weight_OD) if need_weight else None
        d_bias = weight_OD.new_zeros(len(weight_OD)) if need_bias else None
        member, start = _members(place_BF, len(distinct_Rd))
        end = 0
        for grad, weight in zip(grads, weight_OD.split(ctx.widths), strict=True):
            end += len(weight)
            here = slice(end - len(weight), end)
            if grad is None:
                continue
            grad, weight = grad.to(dtype).contiguous(), weight.to(dtype)
            summed = F.embedding_bag(member, grad, start, mode="sum")  # of each distinct row, over the rows that use it
            if need_plain:
                d_plain += grad @ _take(weight, ctx.columns)
            if need_distinct:
                for rows, fields in ctx.blocks:
                    d_distinct[rows] += summed[rows] @ weight[:, fields]
            if need_weight:
                d_weight[here] = _weight_grad(ctx, grad, summed, plain_BK, distinct_Rd, weight)
            if need_bias:
                d_bias[here] = grad.sum(0, dtype=full)
        return None, None, None, None, d_plain, d_distinct, d_weight, d_bias


def _weight_grad(ctx, grad, summed, plain_BK, distinct_Rd, weight) -> Tensor:
    d_weight = torch.empty_like(weight)
    for rows, fields in ctx.blocks:
        torch.mm(summed[rows].mT, distinct_Rd[rows], out=d_weight[:, fields])
    d_plain_part = grad.mT @ plain_BK
    for fields, part in zip(ctx.columns, d_plain_part.split([c.stop - c.start for c in ctx.columns], -1), strict=True):
        d_weight[:, fields] = part
    return d_weight


def _members(place_BF: Tensor, distinct: int) -> tuple[Tensor, Tensor]:
    """The batch rows that use each distinct row, one group after another, and where each group starts."""
    place = place_BF.flatten()
    count = place.bincount(minlength=distinct)
    return place.argsort(stable=True) // place_BF.shape[1], count.cumsum(0) - count


def _take(weight: Tensor, columns: list[slice]) -> Tensor:
    return torch.cat([weight[:, c] for c in columns], -1) if len(columns) > 1 else weight[:, columns[0]]


def _product_type(weight: Tensor) -> torch.dtype:
    """What F.linear would multiply in: autocast touches float32 only."""
    autocast = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32
    return torch.get_autocast_dtype("cpu") if autocast else weight.dtype
