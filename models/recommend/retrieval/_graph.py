"""The graph of users and items, and light propagation over it with a backward pass that is the same propagation.

    A^ = D^-1/2 A D^-1/2        A joins users and items, U + I nodes; D is the diagonal matrix of their degrees
    P  = 1 / (L + 1) sum_l A^^l

P is symmetric, so the gradient of P E is P times the gradient: nothing of the forward pass is kept. A row of A^ E is a
sum of neighbours' rows once the nodes are scaled, so no weight is read for an edge: with z = D^-1/2 E, z <- D^-1 A z.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.recommend.retrieval._log import Log

__all__ = ["Graph"]


class Graph(nn.Module):
    """The normalised graph of a log: nodes 0..U - 1 are users, U..U + I - 1 items.

    A node without neighbours has the mean of its own vector and L zeros, as the equation says.

    Args:
        log: its pairs are the edges.

    Attributes:
        nodes: N = U + I.
    """

    def __init__(self, log: Log):
        super().__init__()
        self.users, self.nodes = log.users, log.users + log.items
        by_item = log.item.argsort(stable=True)
        degree = torch.cat([log.user_degree, log.item_degree])
        scale = degree.clamp(min=1).float().rsqrt()[:, None]  # 1 for a node alone: it must not divide by 0
        # int32 halves what a pass over the edges reads. Not saved: they follow from the log.
        neighbour = torch.cat([log.item + log.users, log.user[by_item]])
        self.register_buffer("neighbour", neighbour.int(), persistent=False)
        self.register_buffer("starts", F.pad(degree.cumsum(0), (1, 0)).int(), persistent=False)
        self.register_buffer("scale", scale, persistent=False)

    def mean(self, table_ND: Tensor, layers: int) -> Tensor:
        """P E for all nodes: (N, D)."""
        return _Mean.apply(self, layers, table_ND)

    def rows(self, table_ND: Tensor, layers: int, node: Tensor) -> tuple[Tensor, Tensor]:
        """P E and E for some nodes (B,) int64: two (B, D). Cheaper to differentiate than rows of `mean`."""
        return _Rows.apply(self, layers, node, table_ND)

    def propagate(self, table_ND: Tensor, layers: int) -> Tensor:
        """P E without gradient, in the type of E."""
        z_ND = table_ND * self.scale
        total_ND = z_ND.clone()
        for _ in range(layers):
            z_ND = F.embedding_bag(self.neighbour, z_ND, self.starts, mode="sum", include_last_offset=True)
            z_ND.mul_(self.scale.square())
            total_ND.add_(z_ND)
        return total_ND.div_(self.scale * (layers + 1))


class _Mean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph, layers, table_ND):
        ctx.graph, ctx.layers = graph, layers
        return graph.propagate(table_ND, layers)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_ND):
        return None, None, ctx.graph.propagate(grad_ND, ctx.layers)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, graph, layers, node, table_ND):
        ctx.graph, ctx.layers = graph, layers
        ctx.save_for_backward(node)
        return F.embedding(node, graph.propagate(table_ND, layers)), F.embedding(node, table_ND)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_BD, own_BD):
        (node,) = ctx.saved_tensors
        grad_ND = torch.zeros(ctx.graph.nodes, grad_BD.shape[1], dtype=grad_BD.dtype, device=grad_BD.device)
        total_ND = ctx.graph.propagate(grad_ND.index_add_(0, node, grad_BD), ctx.layers)
        return None, None, None, total_ND.index_add_(0, node, own_BD)
