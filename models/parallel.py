"""One model on several ranks: DDP or FSDP2, activation checkpointing, compilation, and states gathered whole.

    activation checkpointing -> compile -> FSDP2 per block, then the rest (or DDP around all)

A block is a member of an `nn.ModuleList` called `layers`. Sources: Zhao et al., 2023, arXiv:2304.11277 (FSDP; here the
per-parameter form of torch.distributed.fsdp.fully_shard), Chen et al., 2016, arXiv:1604.06174 (checkpointing).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

__all__ = [
    "add_up", "blocks", "clip_gradients", "full_state", "inner", "load_state", "rank", "ranks", "shard_like",
    "synchronise", "tables", "whole", "wrap", "world",
]  # fmt: skip

LISTS = ("layers", "h", "block", "layer")  # what models call their layers: ours and LLaMA, GPT-2 and BLOOM, T5, BERT
KINDS, ACTIVATIONS = ("none", "ddp", "fsdp"), ("none", "full", "selective")
aten = torch.ops.aten
# What selective checkpointing keeps: the outputs of products and attention, dear to recompute, and of communication.
EXTRA = "_extra_state"  # torch's name for what a module keeps beside its tensors
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops._c10d_functional.reduce_scatter_tensor.default,
}


def rank() -> int:
    """This process's number among those of the run, 0 for a run of one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wrap(
    model: nn.Module,
    kind: str = "none",
    precision: torch.dtype | None = None,
    activations: str = "none",
    compile: bool | str = False,
) -> nn.Module:
    """Prepare a model for training on the ranks of the running process group.

    Args:
        model: on its device, with equal weights on every rank; changed in place.
        kind: "none"; "ddp", each rank holds all weights; "fsdp", each holds a share of every tensor. A run of one rank
            is never wrapped.
        precision: of FSDP's gathered weights (torch.bfloat16), whose shares and sums stay in float32.
        activations: kept for the backward pass: all ("none" is recomputed), only each block's input ("full"), or also
            the outputs of matrix products and attention ("selective"). The random state is restored for dropout.
        compile: each block by torch.compile; a name is that of a backend.

    Raises:
        ValueError: a name that is not among these; no block to checkpoint or compile; scalars to cut.
    """
    if kind not in KINDS or activations not in ACTIVATIONS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}; activations one of "
                         f"{', '.join(ACTIVATIONS)}, got {activations!r}")  # fmt: skip
    found = blocks(model)
    if not found and (compile or activations != "none"):
        raise ValueError(f"{type(model).__name__} has no block (a member of a ModuleList called {', '.join(LISTS)}) "
                         f"to checkpoint or compile; set activations: none and compile: false")  # fmt: skip
    if activations != "none":
        for block in found:
            _recompute(block, selective=activations == "selective")
    if compile:
        for block in found:
            block.compile(**{"backend": compile} if isinstance(compile, str) else {})
    if world() == 1 or kind == "none":
        return model
    device = next(model.parameters()).device
    if kind == "ddp":
        return DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,
            find_unused_parameters=getattr(model, "partial", False),  # a step may leave parameters out
        )
    from torch.distributed.device_mesh import init_device_mesh  # a second of imports that a run of one rank spares
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (world(),))
    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise ValueError(
            f"fsdp cuts tensors along their first dimension, which {', '.join(scalars)} does not have; use ddp"
        )
    # Inputs keep their type: in bfloat16 a count of 1,001 tokens would read 1,000, and rotary tables would be coarse.
    policy = MixedPrecisionPolicy(precision, torch.float32 if precision else None, cast_forward_inputs=False)
    for block in found:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def inner(model: nn.Module) -> nn.Module:
    """The model itself, whatever wraps it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a model, in order, each once; a layer within a layer belongs to the outer one."""
    found: dict[int, nn.Module] = {}
    inside: set[int] = set()
    for name, part in model.named_modules():
        if isinstance(part, nn.ModuleList) and name.split(".")[-1] in LISTS and id(part) not in inside:
            for block in part:
                found[id(block)] = block
                inside |= {id(module) for module in block.modules()}
    return list(found.values())


def tables(model: nn.Module) -> list[nn.Parameter]:
    """Parameters whose rows are looked up: embedding tables, learned positions; also where a head reads them too."""
    found = {}
    for name, part in inner(model).named_modules():
        within = {"embedding", "target_embedding"} & set(name.split("."))
        if isinstance(part, nn.Embedding) or (within and not isinstance(part, (nn.Linear, nn.modules.conv._ConvNd))):
            found |= {id(p): p for p in part.parameters(recurse=False) if p.ndim == 2}
    return list(found.values())


def ranks(model: nn.Module) -> int:
    """Ranks over which this model's gradients are averaged; 1 when it is not wrapped."""
    return world() if isinstance(model, DistributedDataParallel) or _is_fsdp(model) else 1


def synchronise(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass sends gradients: not while micro-batches of one step accumulate."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = now
    elif _is_fsdp(model):
        model.set_requires_gradient_sync(now)


def add_up(values: Mapping[str, Tensor], over: int) -> dict[str, Tensor]:
    """Scalars of the same names on every rank, summed over `over` ranks (1: as they are)."""
    if over == 1 or not values:
        return dict(values)
    names = sorted(values)
    total = torch.stack([values[name].detach().double() for name in names])
    dist.all_reduce(total)
    return {name: total[index].to(values[name].dtype) for index, name in enumerate(names)}


def clip_gradients(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """Scale all gradients so that their common norm is at most `limit`; returns the norm before, a scalar.

    The norm is that of whole tensors, also where each rank holds a share.
    """
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm([parameter.grad for parameter in parameters]))
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from its shares; every rank must ask. One that is not shared is returned as it is."""
    return tensor.full_tensor() if _is_cut(tensor) else tensor


def shard_like(model_tensor: Tensor, value: Tensor) -> Tensor:
    """A whole tensor, equal on every rank, cut as `model_tensor` is."""
    value = value.to(model_tensor.device)
    if not _is_cut(model_tensor):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, model_tensor.device_mesh, model_tensor.placements, src_data_rank=None)


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer whole, on the CPU, by its first name: what is tied appears once.

    Collective: every rank calls it.
    """
    return {name: whole(tensor.detach()).cpu().clone() for name, tensor in _state(model).items()}


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `full_state` gave, into a model wrapped in any way or not at all.

    Raises:
        ValueError: a tensor is missing, is not the model's, or has another shape; names them, and nothing is loaded.
    """
    own = _state(model)
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    both = sorted(own.keys() & tensors.keys())
    shapes = [f"{name} {tuple(tensors[name].shape)} for {tuple(own[name].shape)}" for name in both
              if tensors[name].shape != own[name].shape and not name.endswith(EXTRA)]  # fmt: skip
    if missing or extra or shapes:
        raise ValueError(f"these weights are of another model: missing {missing[:5]} ({len(missing)}), unknown "
                         f"{extra[:5]} ({len(extra)}), other shape {shapes[:5]} ({len(shapes)})")  # fmt: skip
    with torch.no_grad():
        for name, tensor in own.items():
            if name.endswith(EXTRA):  # a module's own, of any size
                inner(model).get_submodule(name.removesuffix(EXTRA).rstrip(".")).set_extra_state(tensors[name])
            else:
                tensor.copy_(shard_like(tensor, tensors[name]))


def _is_fsdp(model: nn.Module) -> bool:
    # What fully_shard adds to a module's class; asking for the class itself would import it.
    return hasattr(model, "set_requires_gradient_sync")


def _is_cut(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor


def _state(model: nn.Module) -> dict[str, Tensor]:
    found, seen = {}, set()
    for name, tensor in inner(model).state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor
    return found


def _recompute(block: nn.Module, selective: bool) -> None:
    # The forward is replaced rather than the block wrapped: names of parameters stay.
    context = {"context_fn": partial(create_selective_checkpoint_contexts, _keep)} if selective else {}
    forward = block.forward
    block.forward = _Recomputed(forward, context)


class _Recomputed:
    """A forward pass that keeps its inputs, and runs again when gradients are asked for."""

    def __init__(self, forward: Callable, context: dict):
        self.forward, self.context = forward, context

    def __call__(self, *inputs, **named):
        if not torch.is_grad_enabled():
            return self.forward(*inputs, **named)
        return checkpoint(self.forward, *inputs, use_reentrant=False, **self.context, **named)


def _keep(context, operation, *inputs, **named) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
