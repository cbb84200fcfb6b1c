"""Convolutions as streams: a decoder fed piece by piece gives the samples of the whole, each computed once.

SNAC's convolutions look both ways, so an output is final only when the inputs on its right are there. Every
layer here keeps the few inputs that later outputs still need, and gives out what is final at once. Nothing
is computed twice, and the zeros of the padding stand only at the two ends of the whole sequence. So the result
does not depend on where the sequence was cut (but for the rounding of other summation orders, below 1e-6).
kyutai-labs/moshi (`modules/conv.py`) does the same with causal convolutions.

`codec.py` translates SNAC's modules into these layers; nothing else uses this file. Tensors are [1, C, n].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

Stage = Callable[[torch.Tensor, bool], torch.Tensor]
"""One layer in one stream. Takes the next inputs [1, C, n], n >= 0, and whether they are the last; gives the
outputs [1, D, m], m >= 0, that no later input can change. Its state is its own."""


class Layer(Protocol):
    """The weights of a layer, shared by all streams."""

    def stream(self, seed: int) -> Stage:
        """The layer at the start of a new sequence."""

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """The outputs [start, stop) that depend on the inputs [start, stop)."""


class Chain:
    """Layers one after the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    def stream(self, seed: int) -> Stage:
        stages = [layer.stream(seed) for layer in self.layers]

        def push(x: torch.Tensor, last: bool) -> torch.Tensor:
            for stage in stages:
                x = stage(x, last)
            return x

        return push

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        for layer in self.layers:
            start, stop = layer.reach(start, stop)
        return start, stop


class Residual(Chain):
    """x + chain(x), for a chain that keeps the length: x waits until the chain's output is final."""

    def stream(self, seed: int) -> Stage:
        inner = super().stream(seed)
        waiting: torch.Tensor | None = None

        def push(x: torch.Tensor, last: bool) -> torch.Tensor:
            nonlocal waiting
            waiting = x if waiting is None else torch.cat([waiting, x], -1)
            y = inner(x, last)
            ready = y.shape[-1]
            y = waiting[..., :ready] + y
            waiting = waiting[..., ready:].clone()  # a view would keep the whole piece in memory
            return y

        return push


class Conv:
    """`torch.nn.Conv1d` with stride 1."""

    def __init__(self, conv: Any) -> None:
        if conv.stride != (1,) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise TypeError(f"can't stream {conv}")
        self.weight, self.bias = _weights(conv)
        (self.padding,), (self.dilation,), self.groups = conv.padding, conv.dilation, conv.groups
        self.channels = conv.in_channels
        self.span = (conv.kernel_size[0] - 1) * self.dilation  # inputs that one output needs, less one

    def stream(self, seed: int) -> Stage:
        kept = self.weight.new_zeros(1, self.channels, self.padding)

        def push(x: torch.Tensor, last: bool) -> torch.Tensor:
            nonlocal kept
            x = torch.cat([kept, x], -1)
            if last:
                x = F.pad(x, (0, self.padding))
            ready = x.shape[-1] - self.span
            if ready <= 0:
                kept = x
                return x.new_zeros(1, len(self.weight), 0)
            kept = x[..., ready:].clone()
            return F.conv1d(x, self.weight, self.bias, dilation=self.dilation, groups=self.groups)

        return push

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        # Output o reads the inputs o - padding .. o - padding + span.
        return start + self.padding - self.span, stop + self.padding


class Upsample:
    """`torch.nn.ConvTranspose1d`: input i adds to the outputs [i * stride, i * stride + kernel), less the padding."""

    def __init__(self, conv: Any) -> None:
        if conv.dilation != (1,) or conv.groups != 1:
            raise TypeError(f"can't stream {conv}")
        self.weight, self.bias = _weights(conv)
        (self.stride,), (self.kernel,), (self.padding,) = conv.stride, conv.kernel_size, conv.padding
        self.cut = self.padding - conv.output_padding[0]  # outputs missing at the right end
        if not 0 <= self.cut < self.kernel or self.kernel < self.stride:
            raise TypeError(f"can't stream {conv}")

    def stream(self, seed: int) -> Stage:
        kept = self.weight.new_zeros(1, len(self.weight), 0)
        first = 0  # index of the first kept input
        done = self.padding  # outputs given out so far; the padding's are never given

        def push(x: torch.Tensor, last: bool) -> torch.Tensor:
            nonlocal kept, first, done
            x = torch.cat([kept, x], -1)
            inputs = first + x.shape[-1]
            if not x.shape[-1]:
                return x.new_zeros(1, self.weight.shape[1], 0)
            y = F.conv_transpose1d(x, self.weight, self.bias, self.stride)
            end = (inputs - 1) * self.stride + self.kernel - self.cut if last else inputs * self.stride
            y = y[..., done - first * self.stride : end - first * self.stride]
            done = max(done, end)
            shared = -(-self.kernel // self.stride) - 1  # inputs whose outputs overlap the next input's
            kept = x[..., max(0, x.shape[-1] - shared) :].clone()
            first = inputs - kept.shape[-1]
            return y

        return push

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        return start * self.stride - self.padding, (stop - 1) * self.stride + self.kernel - self.padding


class Pointwise:
    """A function of each sample alone."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function

    def stream(self, seed: int) -> Stage:
        return lambda x, last: self.function(x)

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        return start, stop


class Noise(Pointwise):
    """x + noise * conv(x): SNAC's NoiseBlock, with noise that can be had again.

    SNAC draws from torch's global generator at each call, so no two decodes agree. Here each block of each
    stream has a generator of its own, keyed by (seed, block). A stream reads it forwards and reads each number
    once, so the n-th position always gets the n-th number. It is drawn on the CPU: every device gets the same.
    """

    def __init__(self, conv: Any, block: int) -> None:
        weight, _ = _weights(conv)
        super().__init__(lambda x: F.conv1d(x, weight) if x.shape[-1] else x)
        self.block = block

    def stream(self, seed: int) -> Stage:
        generator = np.random.Generator(np.random.Philox([seed, self.block]))

        def push(x: torch.Tensor, last: bool) -> torch.Tensor:
            noise = generator.standard_normal(x.shape[-1], dtype=np.float32)
            return x + torch.from_numpy(noise).to(x) * self.function(x)

        return push


def snake(alpha: torch.Tensor) -> Pointwise:
    """x + sin²(alpha x) / alpha, SNAC's activation, with alpha [1, C, 1]."""
    alpha = alpha.detach().clone()
    inverse = (alpha + 1e-9).reciprocal()
    return Pointwise(lambda x: (alpha * x).sin_().square_().mul_(inverse).add_(x))


def _weights(conv: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias as plain tensors: weight normalisation is applied here, once, and not at each call."""
    return conv.weight.detach().clone(), None if conv.bias is None else conv.bias.detach().clone()
