"""A network in training: what the engine made of it, and its optimiser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sjepa.core.distributed import Engine
from sjepa.core.sharding import load_state, whole


class Network(Protocol):
    """What a module must offer so that the engine can shard it and it can be rebuilt during a run."""

    def shards(self) -> list[nn.Module]:
        """The parts that are gathered one at a time, a part before what contains it."""
        ...

    def in_one_piece(self) -> Any:
        """The network, or a copy with whole weights if they are sharded; all processes must call it."""
        ...


N = TypeVar("N", bound=nn.Module)


class Learner(Generic[N]):
    """`network` with `model`, its form in the engine, and `optimizer`. A run may have several, each with its own update."""

    def __init__(self, engine: Engine, network: N, build: Callable[[nn.Module], torch.optim.AdamW]) -> None:
        """`build` makes the optimiser of a network."""
        self.engine, self.network, self._build = engine, network, build
        self.model, self.optimizer = engine.setup(network, build)

    def set_rate(self, rate: float) -> None:
        """Gives every parameter group its own share (`scale`) of the learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)  # checkpoints of early versions have none

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of the sum of all processes' losses."""
        self.engine.backward(self.model, loss)

    def accumulating(self, *, more: bool) -> AbstractContextManager[Any]:
        """Around forward and backward; with `more` to come, gradients are not yet all-reduced."""
        return self.engine.accumulating(self.model, more=more)

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scales the gradient down to `max_norm`; its norm before, which may be inf or NaN."""
        return self.engine.clip_gradients(self.model, self.optimizer, max_norm)

    def step(self) -> None:
        self.optimizer.step()

    def rebuild(self, change: Callable[[N], None], *, forget: str) -> None:
        """Lets `change` alter the network, and sets it up anew. The optimiser keeps the moments of every parameter by its
        name, but for names that start with `forget`. All processes must call it."""
        network, moments = self.network.in_one_piece(), self._moments()  # type: ignore[operator]
        self.engine.release(self.model)
        del self.model, self.optimizer, self.network  # they hold as much memory as what is set up now
        change(network)
        self.network = network
        self.model, self.optimizer = self.engine.setup(network, self._build)
        kept = {
            number: moments[name]
            for number, name in self._names().items()
            if name in moments and not name.startswith(forget)
        }
        load_state(self.optimizer, {**self.optimizer.state_dict(), "state": kept})

    def _moments(self) -> dict[str, Any]:
        """What the optimiser keeps of every parameter, whole and on the host."""
        names, state = self._names(), self.optimizer.state_dict()["state"]
        return {names[number]: whole(moments, Tensor.cpu) for number, moments in state.items()}

    def _names(self) -> dict[int, str]:
        """The names of the parameters by their numbers in the optimiser's state."""
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        ordered = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return {number: names[parameter] for number, parameter in enumerate(ordered)}
