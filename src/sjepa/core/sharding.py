"""Tensors that lie in pieces on several processes (FSDP), and whole ones, which files hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

Module = TypeVar("Module", bound=nn.Module)


def whole(value: Any) -> Any:
    """A tensor, or nested containers of them, with every tensor in pieces put together: all processes must call it."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(whole(item) for item in value)
    return value


def split_like(value: Tensor, own: Any) -> Tensor:
    """This process's piece of a whole tensor, split as `own` is; the whole if that is whole."""
    if not isinstance(own, DTensor) or isinstance(value, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)


def in_one_piece(module: Module, rebuild: Callable[[], Module]) -> Module:
    """The module, or what `rebuild` makes with its weights if these lie in pieces: all processes must call it."""
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        return module
    copied = rebuild().to(next(module.parameters()).device)
    copied.load_state_dict(whole(module.state_dict()))
    return copied


def load_state(part: Any, state: dict[str, Any]) -> None:
    """`part.load_state_dict` of a state of whole tensors, whichever way the part is split."""
    own = part.state_dict()
    part.load_state_dict({name: split_like(value, own.get(name)) for name, value in state.items()})
    for parameter, moments in getattr(part, "state", {}).items():  # an optimiser's
        moments.update({name: split_like(value, parameter) for name, value in moments.items()})
