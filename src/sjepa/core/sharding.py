"""Conversion between sharded tensors (FSDP DTensors) and the full tensors stored in files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Module = TypeVar("Module", bound=nn.Module)


def whole(value: Any, keep: Callable[[Tensor], Any] = lambda tensor: tensor) -> Any:
    """Gathers every DTensor in nested containers into a full tensor, one at a time, and applies
    `keep` to it (e.g. a copy to the CPU). Collective: all ranks call it."""
    if isinstance(value, DTensor):
        return keep(value.full_tensor())
    if isinstance(value, dict):
        return {name: whole(item, keep) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item, keep) for item in value)
    return value


def split_like(value: Tensor, own: Any) -> Tensor:
    """This rank's shard of a full tensor, like `own`; `value` itself if `own` is unsharded."""
    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def in_one_piece(module: Module, rebuild: Callable[[], Module]) -> Module:
    """The module, or, if it is sharded, an unsharded copy made by `rebuild`. Collective: all ranks
    call it."""
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        return module
    copied = rebuild().to(next(module.parameters()).device)
    copied.load_state_dict(whole(module.state_dict()))
    for own, other in zip(module.parameters(), copied.parameters(), strict=True):
        other.requires_grad_(own.requires_grad)
    return copied


def load_state(part: Any, state: dict[str, Any]) -> None:
    """`part.load_state_dict` from full tensors, for a sharded or unsharded module or optimiser."""
    if hasattr(part, "param_groups"):  # an optimiser: its state is keyed by parameter index
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        moments = {
            number: {name: split_like(value, parameters[number]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        part.load_state_dict({**state, "state": moments})
        return
    own = part.state_dict()
    part.load_state_dict({name: split_like(value, own.get(name)) for name, value in state.items()})
