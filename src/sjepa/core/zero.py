"""AdamW whose moments lie in pieces on several processes: stage 1 of ZeRO, as DeepSpeed has it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sjepa.core.errors import UserError

_MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET = 50_000_000  # numbers that are summed across processes at a time


def deepspeed(device: str) -> Any:
    """The package, for a kind of device. Raises UserError without it."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    try:
        import deepspeed as package
    except ImportError:
        raise UserError(
            "train.strategy: deepspeed needs the package of that name: pip install 'sjepa[deepspeed]'"
        ) from None
    return package


class Zero:
    """Makes updates with DeepSpeed, in processes that have found each other."""

    def __init__(self, device: torch.device, autocast_dtype: torch.dtype | None) -> None:
        package = deepspeed(device.type)
        if device.type == "cpu":  # its own sums across processes would be compiled first
            package.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._device, self._initialize = device, package.initialize
        self._config = {
            "train_micro_batch_size_per_gpu": 1,  # of no effect, but asked for
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {"stage": 1, "reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET},
            "torch_autocast": {
                "enabled": autocast_dtype is not None,
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # gradients are summed in float32
            },
        }

    def setup(self, network: nn.Module, build: Callable[[nn.Module], torch.optim.AdamW]) -> tuple[Any, MomentsInPieces]:
        """Model (an engine of its own) and optimiser."""
        network.to(self._device)
        whole = build(network)
        child_of = {parameter: name.split(".")[0] for name, parameter in network.named_parameters()}
        pieces = type(whole)(list(_by_child(whole.param_groups, child_of)), fused=whole.defaults["fused"])
        engine, zero, _, _ = self._initialize(model=network, optimizer=pieces, config=self._config)
        return engine, MomentsInPieces(engine, zero, whole)


class MomentsInPieces:
    """What DeepSpeed made of an AdamW, with the state and the parameter groups of that AdamW."""

    def __init__(self, engine: Any, zero: Any, whole: torch.optim.AdamW) -> None:
        """`whole` names the groups and numbers the parameters; it makes no update itself."""
        self._engine, self._zero, self._whole = engine, zero, whole
        self.param_groups = whole.param_groups
        for flat in self._flat:
            step = torch.zeros((), device=flat.device if whole.defaults["fused"] else "cpu")
            zero.optimizer.state[flat] = {"step": step, **{name: torch.zeros_like(flat) for name in _MOMENTS}}
        zero._lazy_init_hp_params_optimizer_state()

    @property
    def _flat(self) -> list[Tensor]:
        """This process's piece of each of DeepSpeed's groups."""
        return [group["params"][0] for group in self._zero.optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._zero.zero_grad(set_to_none=set_to_none)

    def limit(self, max_norm: float) -> Tensor:
        """The norm of the whole gradient, inf if it is not finite; `step` scales it down to `max_norm`."""
        self._zero.clip_grad = max_norm
        norm = torch.as_tensor(self._zero.scaled_global_norm())
        return torch.where(norm < 0, torch.inf, norm)

    def step(self) -> None:
        for group in self._zero.optimizer.param_groups:
            group["lr"] = self.param_groups[group["whole"]]["lr"]
        self._engine.step()

    def state_dict(self) -> dict[str, Any]:
        """As of an AdamW in one process: whole tensors, on the host. All processes must call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Tensor]] = {}
        for number, (parameter, flat) in enumerate(self._numbered()):
            moments = {name: safe_get_full_optimizer_state(parameter, name).cpu() for name in _MOMENTS}
            state[number] = {"step": self._zero.optimizer.state[flat]["step"].clone(), **moments}
        return {**self._whole.state_dict(), "state": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the state of an AdamW in one process; parameters without one begin anew. The weights, which must be in place
        by now, are read again as well."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()
        for number, (parameter, flat) in enumerate(self._numbered()):
            moments = state["state"].get(number)
            if moments is not None:
                self._zero.optimizer.state[flat]["step"].fill_(float(moments["step"]))
                for name in _MOMENTS:
                    safe_set_full_optimizer_state(parameter, moments[name].to(flat.device), name)

    def _numbered(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Every parameter in AdamW's order, with the piece of the group that it belongs to."""
        flat_of = {
            parameter: flat
            for group, flat in zip(self._zero.bit16_groups, self._flat, strict=True)
            for parameter in group
        }
        for group in self.param_groups:
            for parameter in group["params"]:
                yield parameter, flat_of[parameter]


def _by_child(groups: list[dict[str, Any]], child_of: dict[nn.Parameter, str]) -> Iterator[dict[str, Any]]:
    """Parameter groups, split by the part of the network that they belong to: a group counts its steps in one figure, and
    a part that is renewed begins to count anew. `whole` is the number of the group that one came from."""
    for number, group in enumerate(groups):
        for child in dict.fromkeys(child_of[parameter] for parameter in group["params"]):
            own = [parameter for parameter in group["params"] if child_of[parameter] == child]
            yield {**group, "params": own, "whole": number}
