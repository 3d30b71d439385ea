"""Where a frozen teacher's weights are, when one accelerator does not hold them beside the student's.

    offload   in the CPU's memory; each layer is copied to the device for its turn, then the copy is dropped
    shard     each rank holds a share of every layer, which is gathered for its turn (FSDP2)

Both give what the whole teacher gives, to the bit. Embedding and heads stay whole on the device: a head is read in
chunks, and by losses, outside of any forward pass. Source of sharding: Zhao et al., 2023, arXiv:2304.11277.
"""

import torch
from torch import Tensor, nn

from models import parallel

__all__ = ["offload", "shard"]


def offload(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Keep the layers' weights on the CPU, one layer's at a time on the device; changed in place.

    Raises:
        ValueError: the model has no layers, or its weights are to be trained.
    """
    layers = _layers(model)
    _move_rest(model, layers, device)
    for layer in layers:
        layer.cpu()
        if torch.device(device).type == "cuda":
            for tensor in _tensors(layer):
                tensor.data = tensor.data.pin_memory()
        visit = _Visit(layer, device)
        layer.register_forward_pre_hook(visit.arrive)
        layer.register_forward_hook(visit.leave, always_call=True)
    return model


def shard(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Share the layers' weights among the ranks of the running process group; changed in place. One rank keeps all.

    Every rank must ask the teacher equally often: layers are gathered by all of them together.

    Raises:
        ValueError: the model has no layers, or its weights are to be trained.
    """
    layers = _layers(model)
    model.to(device)
    if parallel.world() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh  # a second of imports that a run of one rank spares
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(torch.device(device).type, (parallel.world(),))
    for layer in layers:
        # Said outright: a layer is a root of its own here, and a root's gathered weights would be kept.
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    return model


class _Visit:
    """Weights of one layer, on the device for the time of its forward pass."""

    def __init__(self, layer: nn.Module, device: str | torch.device):
        self.device, self.home = device, {tensor: tensor.data for tensor in _tensors(layer)}

    def arrive(self, layer: nn.Module, inputs) -> None:
        for tensor, home in self.home.items():
            tensor.data = _copy(home, self.device)

    def leave(self, layer: nn.Module, inputs, output) -> None:
        for tensor, home in self.home.items():
            tensor.data = home


def _copy(tensor: Tensor, device: str | torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def _layers(model: nn.Module) -> list[nn.Module]:
    layers = parallel.blocks(model)
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layers (members of a ModuleList called layers) to place")
    if learned := [name for name, parameter in model.named_parameters() if parameter.requires_grad]:
        raise ValueError(f"only a frozen teacher's layers are placed, but {len(learned)} tensors are to be trained, "
                         f"such as {learned[0]}; call requires_grad_(False)")  # fmt: skip
    return layers


def _move_rest(model: nn.Module, layers: list[nn.Module], device: str | torch.device) -> None:
    inside = {id(tensor) for layer in layers for tensor in _tensors(layer)}
    for tensor in _tensors(model):
        if id(tensor) not in inside:
            tensor.data = tensor.data.to(device)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
