"""AdamW with sharded moments, perhaps gradients: DeepSpeed ZeRO stages 1 and 2."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sjepa.core.errors import UserError

_MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET = 50_000_000  # elements per all-reduce
_FIRST_SCALE, _STEPS_TO_DOUBLE = 2.0**16, 2000  # of the float16 loss, as torch.amp.GradScaler


def deepspeed(device: str) -> Any:
    """Imports DeepSpeed for a device type. Raises UserError if it is not installed."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    try:
        import deepspeed as package
    except ImportError:
        raise UserError(
            "train.strategy: deepspeed needs the package of that name: pip install 'sjepa[deepspeed]'"
        ) from None
    return package


class Zero:
    """Optimiser updates with DeepSpeed; requires an initialised process group."""

    def __init__(self, device: torch.device, autocast_dtype: torch.dtype | None, stage: int) -> None:
        package = deepspeed(device.type)
        if device.type == "cpu":  # avoids compiling its shared-memory all-reduce
            package.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self._device, self._initialize = device, package.initialize
        self._scales_loss = autocast_dtype is torch.float16
        self._config = {
            "train_micro_batch_size_per_gpu": 1,  # required by DeepSpeed, no effect here
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": stage,
                "reduce_bucket_size": _BUCKET,
                "allgather_bucket_size": _BUCKET,
            },
            "torch_autocast": {
                "enabled": autocast_dtype is not None,
                "dtype": str(autocast_dtype or torch.bfloat16).removeprefix("torch."),
                "lower_precision_safe_modules": [],  # gradients are reduced in float32
            },
        }

    def setup(self, network: nn.Module, build: Callable[[nn.Module], torch.optim.AdamW]) -> tuple[Any, MomentsInPieces]:
        """DeepSpeed engine (the model) and optimiser."""
        network.to(self._device)
        whole = build(network)
        child_of = {parameter: name.split(".")[0] for name, parameter in network.named_parameters()}
        pieces = type(whole)(list(_by_child(whole.param_groups, child_of)), fused=whole.defaults["fused"])
        engine, zero, _, _ = self._initialize(model=network, optimizer=pieces, config=self._config)
        return engine, MomentsInPieces(engine, zero, whole, scales_loss=self._scales_loss)


class MomentsInPieces:
    """ZeRO optimiser with the interface, parameter groups and state dict of a plain AdamW."""

    def __init__(self, engine: Any, zero: Any, whole: torch.optim.AdamW, *, scales_loss: bool) -> None:
        """`whole`: unsharded AdamW, for groups and parameter order; its step is never called.
        `scales_loss`: a dynamic loss scale, for float16; DeepSpeed's own with autocast does not
        unscale the norm it clips by."""
        self._engine, self._zero, self._whole = engine, zero, whole
        self.param_groups = whole.param_groups
        self._scales_loss, self._scale, self._finite, self._steps_at_scale = scales_loss, 1.0, True, 0
        if scales_loss:
            zero.torch_autocast_gradscaler = None
            self._set_scale(_FIRST_SCALE)
        for flat in self._flat:
            step = torch.zeros((), device=flat.device if whole.defaults["fused"] else "cpu")
            zero.optimizer.state[flat] = {"step": step, **{name: torch.zeros_like(flat) for name in _MOMENTS}}
        zero._lazy_init_hp_params_optimizer_state()

    @property
    def _flat(self) -> list[Tensor]:
        """This rank's flat shard of each DeepSpeed parameter group."""
        return [group["params"][0] for group in self._zero.optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._zero.zero_grad(set_to_none=set_to_none)

    def limit(self, max_norm: float) -> Tensor:
        """Global gradient norm, inf if not finite; `step` clips the gradient to `max_norm`."""
        self._zero.clip_grad = max_norm
        norm = torch.as_tensor(self._zero.scaled_global_norm()) / self._scale
        norm = torch.where(norm < 0, torch.inf, norm)
        if self._scales_loss:
            self._finite = bool(norm.isfinite())
        return norm

    def step(self) -> None:
        """With a loss scale: no step on a gradient that is not finite; the scale is then halved."""
        for group in self._zero.optimizer.param_groups:
            group["lr"] = self.param_groups[group["whole"]]["lr"]
        self._engine.step()
        if self._scales_loss:
            self._adapt_scale()

    def _adapt_scale(self) -> None:
        self._steps_at_scale += 1
        if not self._finite:
            self._set_scale(self._scale / 2)
        elif self._steps_at_scale == _STEPS_TO_DOUBLE:
            self._set_scale(self._scale * 2)

    def _set_scale(self, scale: float) -> None:
        self._scale, self._steps_at_scale = scale, 0
        self._zero.override_loss_scale(scale)

    def state_dict(self) -> dict[str, Any]:
        """As of an unsharded AdamW: full tensors, on the CPU. Collective: all ranks call it."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Tensor]] = {}
        for number, (parameter, flat) in enumerate(self._numbered()):
            moments = {name: safe_get_full_optimizer_state(parameter, name).cpu() for name in _MOMENTS}
            state[number] = {"step": self._zero.optimizer.state[flat]["step"].clone(), **moments}
        return {**self._whole.state_dict(), "state": state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads the state of an unsharded AdamW; parameters without state keep zero moments. Also
        refreshes the fp32 copy of the weights, which must be loaded before."""
        from deepspeed.utils import safe_set_full_optimizer_state

        self._zero.refresh_fp32_params()
        for number, (parameter, flat) in enumerate(self._numbered()):
            moments = state["state"].get(number)
            if moments is not None:
                self._zero.optimizer.state[flat]["step"].fill_(float(moments["step"]))
                for name in _MOMENTS:
                    safe_set_full_optimizer_state(parameter, moments[name].to(flat.device), name)

    def _numbered(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Every parameter in AdamW's order, with the flat shard of its group."""
        flat_of = {
            parameter: flat
            for group, flat in zip(self._zero.bit16_groups, self._flat, strict=True)
            for parameter in group
        }
        for group in self.param_groups:
            for parameter in group["params"]:
                yield parameter, flat_of[parameter]


def _by_child(groups: list[dict[str, Any]], child_of: dict[nn.Parameter, str]) -> Iterator[dict[str, Any]]:
    """Parameter groups split by top-level submodule: DeepSpeed has one step counter per group, and
    a submodule that is re-initialised restarts its count. `whole`: index of the original group."""
    for number, group in enumerate(groups):
        for child in dict.fromkeys(child_of[parameter] for parameter in group["params"]):
            own = [parameter for parameter in group["params"] if child_of[parameter] == child]
            yield {**group, "params": own, "whole": number}
