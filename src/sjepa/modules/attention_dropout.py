"""Attention with dropout of its weights on a CPU, for which torch has no fused kernel.

A few heads at a time, so that their weights stay in the cache. Weights and masks are computed again
in the backward pass: memory grows with the frames, not with their square.

B batch, H heads, T frames, E width of a head, N = B·H.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sjepa.modules.dropout import Masks, new_seed

_WEIGHTS = 1 << 19  # 2 MiB in float32


def attention_with_dropout(query: Tensor, keys: Tensor, values: Tensor, real_BT: Tensor | None, rate: float) -> Tensor:
    """As `scaled_dot_product_attention` of [B, H, T, E] with `dropout_p=rate`; `real_BT`: frames
    that may be attended to. Scores and softmax are float32."""
    batch, heads, frames, size = query.shape
    bias_BT = torch.zeros(batch, frames)
    if real_BT is not None:
        # finite, to avoid NaN for clips without frames
        bias_BT.masked_fill_(~real_BT, torch.finfo(torch.float32).min)
    bias_NT = bias_BT.repeat_interleave(heads, dim=0)
    query, keys, values = (x.reshape(batch * heads, frames, size) for x in (query, keys, values))
    with torch.autocast("cpu", enabled=False):
        mixed = _DroppedAttention.apply(query, keys, values, bias_NT, rate)  # type: ignore[no-untyped-call]
    return mixed.view(batch, heads, frames, size)  # type: ignore[no-any-return]


class _DroppedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_NTE: Tensor, k_NTE: Tensor, v_NTE: Tensor, bias_NT: Tensor, rate: float) -> Tensor:
        ctx.save_for_backward(q_NTE, k_NTE, v_NTE, bias_NT)
        ctx.rate, ctx.seed = rate, new_seed(q_NTE)
        masks, out_NTE = Masks(rate, seed=ctx.seed), torch.empty_like(v_NTE)
        for piece in _pieces(q_NTE):
            weights = _weights(q_NTE[piece], k_NTE[piece], bias_NT[piece]).to(v_NTE.dtype)
            kept, scale = masks.draw(weights)
            torch.bmm(weights.mul_(kept), v_NTE[piece], out=out_NTE[piece]).mul_(scale)
        return out_NTE

    @staticmethod
    def backward(ctx: Any, gradient_NTE: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:  # type: ignore[override]
        q_NTE, k_NTE, v_NTE, bias_NT = ctx.saved_tensors
        masks = Masks(ctx.rate, seed=ctx.seed)
        into_q, into_k, into_v = (torch.empty_like(x) for x in (q_NTE, k_NTE, v_NTE))
        for piece in _pieces(q_NTE):
            q, k, v = q_NTE[piece], k_NTE[piece], v_NTE[piece]
            weights = _weights(q, k, bias_NT[piece])
            own = weights.to(v.dtype)
            kept, scale = masks.draw(own)
            gradient = gradient_NTE[piece] * scale
            of_weights = torch.bmm(gradient, v.transpose(1, 2)).mul_(kept).float()
            torch.bmm(kept.mul_(own).transpose(1, 2), gradient, out=into_v[piece])
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, torch.float32).to(q.dtype)
            torch.bmm(of_scores, k, out=into_q[piece])
            torch.bmm(of_scores.transpose(1, 2), q, out=into_k[piece])
        scale = q_NTE.shape[-1] ** -0.5
        return into_q.mul_(scale), into_k.mul_(scale), into_v, None, None


def _weights(q_NTE: Tensor, k_NTE: Tensor, bias_NT: Tensor) -> Tensor:
    """softmax(q·kᵀ / √E + bias), float32 [N, T, T]."""
    scores = torch.bmm(q_NTE.float() * q_NTE.shape[-1] ** -0.5, k_NTE.float().transpose(1, 2))
    return scores.add_(bias_NT[:, None]).softmax(-1)


def _pieces(x_NTE: Tensor) -> Iterator[slice]:
    heads, frames, _ = x_NTE.shape
    step = max(1, _WEIGHTS // frames**2) if frames else heads
    return (slice(start, start + step) for start in range(0, heads, step))
