"""Vectors of the users and items of a batch, from their tables alone or smoothed over the graph of who bought what.

    mf        e = E[batch]
    lightgcn  e = (1 / (L + 1)) sum_l (A^l E)[batch]        A = D^-1/2 [0 R ; R^T 0] D^-1/2

Only what a batch reaches is propagated. With R_L the batch's nodes and R_l-1 = R_l and its neighbours,

    H_0 = E,  H_l = A[R_l, R_l-1] H_l-1,      e = (1 / (L + 1)) sum_l H_l[R_L]

The last product has the rows of the batch instead of all, and so have the products of the gradient. The numbers are
those of the whole graph (LightGCN: He et al., 2020, arXiv:2002.02126); leaving out what nobody reads is ours.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.recommend.retrieval._graph import Graph
from models.recommend.retrieval._log import Log

__all__ = ["ENCODERS", "Encoder"]

ENCODERS = ("mf", "lightgcn")


class Encoder(nn.Module):
    """Tables of U users and I items, D wide, and the graph of the log where it is wanted.

    Users are nodes 0..U-1, items U..U+I-1. Tables start Xavier normal.

    Args:
        log: the training pairs: the graph's edges.
        width: D.
        kind: one of ENCODERS.
        layers: L of lightgcn; 0 is mf.

    Raises:
        ValueError: an unknown kind, or a width or number of layers that cannot be.
    """

    def __init__(self, log: Log, width: int, kind: str = "mf", layers: int = 0):
        super().__init__()
        if kind not in ENCODERS:
            raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}; got {kind!r}")
        if width < 1 or layers < 0:
            raise ValueError(f"an encoder needs width >= 1 and layers >= 0; got width={width}, layers={layers}")
        self.users, self.layers = log.users, layers if kind == "lightgcn" else 0
        self.table = nn.Parameter(torch.empty(log.users + log.items, width))
        for part in self.split(self.table):
            nn.init.xavier_normal_(part)
        if self.layers:
            self.graph = Graph(log)
            pair = torch.cat([torch.arange(len(log), device=log.item.device), log.item.argsort(stable=True)])
            self.register_buffer("pair", pair, persistent=False)  # behind each edge

    def split(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of all nodes -> those of users (U, D) and of items (I, D)."""
        return table[: self.users], table[self.users :]

    def forward(
        self, user: Tensor, item: Tensor, kept: Tensor | None = None, table: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Vectors of a batch.

        Args:
            user: (B,) int64.
            item: (B,) int64.
            kept: (E,) factors of the log's pairs, in its order: 0 drops a pair from the graph, both ways.
            table: (U + I, D) to read instead of the module's own.

        Returns:
            (B, D) of the users; (B, D) of the items.
        """
        table, nodes = self.table if table is None else table, torch.cat([user, item + self.users])
        if self.layers:
            factor = None if kept is None else kept.to(table.dtype)[self.pair]
            rows = _Propagate.apply(table, nodes, self.graph, factor, self.layers)
        else:
            rows = F.embedding(nodes, table)
        return rows[: len(user)], rows[len(user) :]

    @torch.no_grad()
    def all(self) -> tuple[Tensor, Tensor]:
        """Vectors of all users (U, D) and items (I, D)."""
        table = self.table.detach()
        return self.split(self.graph.propagate(table, self.layers) if self.layers else table)


class _Propagate(torch.autograd.Function):
    """(table, nodes) -> the mean of the layers at the nodes."""

    @staticmethod
    def forward(ctx, table, nodes, graph, factor, layers):
        rows, place = nodes.unique(return_inverse=True)
        reached = [rows]  # R_L, R_L-1, ... R_1
        for _ in range(layers - 1):
            near = torch.zeros(len(table), dtype=torch.bool, device=table.device)
            near[graph.neighbour[_edges(reached[-1], graph)[0]]] = True
            near[reached[-1]] = True
            reached.append(near.nonzero().squeeze(1))
        total, layer, local = table[rows], table, None
        for at in reversed(reached):
            edge, owner, bounds = _edges(at, graph)
            source = graph.neighbour[edge]
            weight = _weights(graph, owner, source, edge, factor, table.dtype)
            layer = _sums(layer, source if local is None else local[source], bounds, weight)
            local = _numbers(at, len(table))
            total += layer[local[rows]]
        ctx.save_for_backward(place, factor, *reached)
        ctx.graph, ctx.size = graph, len(table)
        return total.div_(layers + 1)[place]

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (place, factor, *reached), graph = ctx.saved_tensors, ctx.graph
        rows = reached[0]
        share = gradient.new_zeros(len(rows), gradient.shape[1]).index_add_(0, place, gradient)
        share /= len(reached) + 1
        every, flow = torch.arange(ctx.size, device=place.device), share
        for at, below in zip(reached, [*reached[1:], every], strict=True):
            # A is symmetric: what flows back to a node comes from those of its neighbours that were computed.
            local, (edge, owner, bounds) = _numbers(at, ctx.size), _edges(below, graph)
            source = graph.neighbour[edge]
            known = local[source] >= 0
            bounds = F.pad(known.cumsum(0), (1, 0))[bounds]
            edge, owner, source = edge[known], owner[known], source[known]
            flow = _sums(flow, local[source], bounds, _weights(graph, owner, source, edge, factor, flow.dtype))
            flow.index_add_(0, torch.searchsorted(below, rows), share)
        return flow, None, None, None, None


def _numbers(rows: Tensor, nodes: int) -> Tensor:
    """Where each node stands in `rows`, -1 where it does not: (nodes,)."""
    local = torch.full((nodes,), -1, dtype=torch.int64, device=rows.device)
    local[rows] = torch.arange(len(rows), device=rows.device)
    return local


def _edges(rows: Tensor, graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """The places of these rows' edges, row after row; the row of each; where each row begins among them."""
    first = graph.starts[rows].long()
    count = graph.starts[rows + 1].long() - first
    bounds = count.cumsum(0) - count
    total = int(count.sum())
    jump = (first - bounds).repeat_interleave(count, output_size=total)
    owner = rows.repeat_interleave(count, output_size=total)
    return torch.arange(total, device=rows.device) + jump, owner, bounds


def _weights(graph: Graph, row: Tensor, column: Tensor, edge: Tensor, factor: Tensor | None, dtype) -> Tensor:
    """A's entries."""
    scale = graph.scale[:, 0].to(dtype)
    weight = scale[row] * scale[column]
    return weight if factor is None else weight * factor[edge]


def _sums(table: Tensor, source: Tensor, bounds: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of table rows: one for each of `bounds`, over the sources from there to the next."""
    return F.embedding_bag(source.to(bounds.dtype), table, bounds, mode="sum", per_sample_weights=weight)
