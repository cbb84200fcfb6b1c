"""Faster training operations for SNAC and the tiny Llama on a CPU.

The gradients of SNAC's equal PyTorch's own (to about 3e-7).
PyTorch's CPU backward of a depthwise convolution takes three quarters of a SNAC training step. Here it is a
depthwise convolution with flipped taps and one reduction a tap; 1x1 convolutions become matrix products, and
snake keeps what its backward needs. `speed_up` changes the modules' forward only: parameters and state dict stay.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Depthwise(torch.autograd.Function):
    """Depthwise conv1d with stride 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = (padding, dilation, bias is not None)
        return F.conv1d(x, weight, bias, 1, padding, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        padding, dilation, has_bias = ctx.settings
        g, taps = grads[0].contiguous(), weight.shape[-1]
        gx = None
        if ctx.needs_input_grad[0]:
            gx = F.conv1d(g, weight.flip(-1), None, 1, dilation * (taps - 1) - padding, dilation, x.shape[1])
        padded, n = F.pad(x, (padding, padding)), g.shape[-1]
        gw = [torch.linalg.vecdot(padded[..., i * dilation : i * dilation + n], g).sum(0) for i in range(taps)]
        return gx, torch.stack(gw, -1)[:, None], g.sum((0, 2)) if has_bias else None, None, None


class _Pointwise(torch.autograd.Function):
    """1x1 conv1d as a matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        y = torch.matmul(weight[:, :, 0], x)
        return y if bias is None else y.add_(bias[:, None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = grads[0]
        gw = torch.bmm(g, x.transpose(1, 2)).sum(0)[..., None]
        return torch.matmul(weight[:, :, 0].t(), g), gw, g.sum((0, 2)) if ctx.has_bias else None


class _Snake(torch.autograd.Function):
    """x + sin(alpha x)^2 / alpha."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor) -> Tensor:
        squared = torch.sin(x * alpha).square_()
        ctx.save_for_backward(x, alpha, squared)
        return torch.addcmul(x, squared, 1 / (alpha + 1e-9))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, alpha, squared = ctx.saved_tensors
        g, inverse = grads[0], 1 / (alpha + 1e-9)
        slope = (x * (2 * alpha)).sin_().mul_(g)
        galpha = None
        if ctx.needs_input_grad[1]:
            galpha = torch.linalg.vecdot(slope, x).sum(0)[None, :, None] * inverse
            galpha = galpha - torch.linalg.vecdot(g, squared).sum(0)[None, :, None] * inverse**2
        return slope.mul_(alpha * inverse).add_(g), galpha


def _depthwise_forward(conv: Any, x: Tensor) -> Tensor:
    return _Depthwise.apply(x, conv.weight, conv.bias, conv.padding[0], conv.dilation[0])


def _pointwise_forward(conv: Any, x: Tensor) -> Tensor:
    return _Pointwise.apply(x, conv.weight, conv.bias)


def _snake_forward(snake: Any, x: Tensor) -> Tensor:
    return _Snake.apply(x, snake.alpha)


def speed_up(model: torch.nn.Module) -> torch.nn.Module:
    """Give the convolutions and snakes of `model` the operations above. Returns `model`."""
    from snac.layers import Snake1d

    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d):
            if module.groups > 1 and module.groups == module.in_channels:
                module.forward = types.MethodType(_depthwise_forward, module)  # type: ignore[method-assign]
            elif module.kernel_size == (1,):
                module.forward = types.MethodType(_pointwise_forward, module)  # type: ignore[method-assign]
        elif isinstance(module, Snake1d):
            module.forward = types.MethodType(_snake_forward, module)
    return model


def plain_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention of right-padded rows in few bfloat16 operations: 3 times PyTorch's CPU kernel in training."""
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    q = (query * scaling).reshape(batch * groups, heads // groups * length, width)
    k, v = key.reshape(batch * groups, length, width), value.reshape(batch * groups, length, width)
    future = torch.full((length, length), -1e4, dtype=q.dtype, device=q.device).triu(1)
    scores = torch.baddbmm(future.repeat(heads // groups, 1), q, k.transpose(1, 2))
    out = torch.bmm(torch.softmax(scores, -1, dtype=scores.dtype), v)
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def orthogonal(grad: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """The nearest orthogonal matrix, about, as in torch.optim.Muon; that rounds to bfloat16, which takes two thirds of
    the training on a processor that has none."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if grad.size(0) > grad.size(1) else x


def speed_up_llama(lm: Any) -> Any:
    """Give a LlamaForCausalLM the attention above, and Muon the iteration. Returns `lm`."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("plain", plain_attention)
    lm.set_attn_implementation("plain")
    torch.optim._muon._zeropower_via_newtonschulz = orthogonal  # type: ignore[attr-defined]
    return lm
