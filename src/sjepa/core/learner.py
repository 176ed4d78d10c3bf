"""A network in training: the module, its wrapped model and its optimiser."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from sjepa.core.distributed import Engine
from sjepa.core.sharding import load_state, whole

N = TypeVar("N", bound=nn.Module)


class Learner(Generic[N]):
    """`network`, its wrapped form `model` and its `optimizer`. A run may have several learners.

    Networks for FSDP have `shards()`: the submodules that are FSDP units, inner ones before the
    modules that contain them. Those that `rebuild` changes have `in_one_piece()`: the network, or
    an unsharded copy if it is sharded (collective).
    """

    def __init__(self, engine: Engine, network: N, build: Callable[[nn.Module], torch.optim.AdamW]) -> None:
        """`build`: creates the optimiser of a network."""
        self.engine, self.network, self._build = engine, network, build
        self.model, self.optimizer = engine.setup(network, build)

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of every parameter group to `rate` times its `scale`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)  # missing in old checkpoints

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Accumulates the gradient of the loss summed over all ranks."""
        self.engine.backward(self.model, loss)

    def accumulating(self, *, more: bool) -> AbstractContextManager[Any]:
        """Context for forward and backward of a micro-batch; with `more` micro-batches to follow in
        this update, the gradient all-reduce is skipped."""
        return self.engine.accumulating(self.model, more=more)

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Clips the gradient to `max_norm`. Returns the norm before clipping, may be inf or NaN."""
        return self.engine.clip_gradients(self.model, self.optimizer, max_norm)

    def step(self) -> None:
        self.optimizer.step()

    def rebuild(self, change: Callable[[N], None], *, forget: str) -> None:
        """Applies `change` to the unsharded network and wraps it again. Optimiser moments are kept
        by parameter name, except for names that start with `forget`. Collective: all ranks call
        it."""
        network, moments = self.network.in_one_piece(), self._moments()  # type: ignore[operator]
        self.engine.release(self.model)
        # free their memory before the new ones are created
        del self.model, self.optimizer, self.network
        change(network)
        self.network = network
        self.model, self.optimizer = self.engine.setup(network, self._build)
        kept = {
            number: moments[name]
            for number, name in self.parameter_names().items()
            if name in moments and not name.startswith(forget)
        }
        load_state(self.optimizer, {**self.optimizer.state_dict(), "state": kept})

    def _moments(self) -> dict[str, Any]:
        """Optimiser state per parameter name; sharded tensors are gathered on the CPU."""
        names, state = self.parameter_names(), self.optimizer.state_dict()["state"]
        return {names[number]: whole(moments, Tensor.cpu) for number, moments in state.items()}

    def parameter_names(self) -> dict[int, str]:
        """By their index in the optimiser's state."""
        names = {parameter: name for name, parameter in self.network.named_parameters()}
        ordered = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        return {number: names[parameter] for number, parameter in enumerate(ordered)}
