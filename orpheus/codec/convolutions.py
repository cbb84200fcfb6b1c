"""Convolutions as streams: a decoder fed piece by piece gives the samples of the whole, each computed once.

SNAC's convolutions look both ways, so an output is final only when the inputs on its right are there. Every
layer here keeps the few inputs that later outputs still need, and gives out what is final at once. Nothing
is computed twice, and the zeros of the padding stand only at the two ends of the whole sequence. So the result
does not depend on where the sequence was cut (but for the rounding of other summation orders, below 1e-6).
kyutai-labs/moshi (`modules/conv.py`) does the same with causal convolutions.

Several streams that stand at the same place of their course can be computed as the rows of one batch: `stack` their
states, call the layers once, `unstack`.

`codec.py` translates SNAC's modules into these layers; nothing else uses this file. Tensors are [B, C, n].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

BLOCK = 2**18  # numbers that `shifted` computes at a time: 1 MB, which stays in a core's cache
FEW = 64  # inputs up to which `Upsample` is faster as a matrix product, on a CPU (benchmarks/LOG.md)


@dataclass
class State:
    """What a layer, or a chain of them, remembers of the streams in a batch (of B rows)."""

    kept: torch.Tensor | None = None  # the inputs [B, C, k] that later outputs need
    skip: int = 0  # outputs still to be dropped: those of the zeros before the first input
    noise: list[np.random.Generator] = field(default_factory=list)  # a generator for each row
    inner: list[State] = field(default_factory=list)

    @property
    def place(self) -> tuple[int, ...]:
        """Equal for streams that can share a batch: what the next call does to the shapes."""
        own = (self.skip, -1 if self.kept is None else self.kept.shape[-1])
        return own + tuple(number for state in self.inner for number in state.place)


def stack(states: Sequence[State]) -> State:
    """The states of several streams, all at the same `place`, as that of one batch."""
    first = states[0]
    kept = None if first.kept is None else torch.cat([state.kept for state in states if state.kept is not None])
    inner = [stack(parts) for parts in zip(*(state.inner for state in states), strict=True)]
    return State(kept, first.skip, [generator for state in states for generator in state.noise], inner)


def unstack(batch: State, states: Sequence[State]) -> None:
    """Give each stream its row of the batch back."""
    for row, state in enumerate(states):
        state.skip = batch.skip
        state.kept = None if batch.kept is None else batch.kept[row : row + 1]
    for layer, part in enumerate(batch.inner):
        unstack(part, [state.inner[layer] for state in states])


class Layer(Protocol):
    """The weights of a layer, shared by all streams."""

    def start(self, seed: int) -> State:
        """The state of one stream before its first input."""

    def push(self, x: torch.Tensor, state: State, last: bool) -> torch.Tensor:
        """Take the next inputs [B, C, n], n >= 0, and whether they are the last.

        Returns the outputs [B, D, m], m >= 0, that no later input can change; `state` moves on.
        """

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        """The outputs [start, stop) that depend on the inputs [start, stop)."""


class Chain:
    """Layers one after the other."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    def start(self, seed: int) -> State:
        return State(inner=[layer.start(seed) for layer in self.layers])

    def push(self, x: torch.Tensor, state: State, last: bool) -> torch.Tensor:
        for layer, part in zip(self.layers, state.inner, strict=True):
            x = layer.push(x, part, last)
        return x

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        for layer in self.layers:
            start, stop = layer.reach(start, stop)
        return start, stop


class Residual(Chain):
    """x + chain(x), for a chain that keeps the length: x waits until the chain's output is final."""

    def push(self, x: torch.Tensor, state: State, last: bool) -> torch.Tensor:
        y = super().push(x, state, last)
        waiting = x if state.kept is None else torch.cat([state.kept, x], -1)
        ready = y.shape[-1]
        state.kept = waiting[..., ready:].clone()  # a view would keep the whole piece in memory
        return waiting[..., :ready] + y


class _Windowed:
    """A layer whose output i needs the inputs i - `span` .. i, and gives the first `early` outputs to nobody."""

    channels: int
    out_channels: int
    span: int
    early: int
    like: torch.Tensor

    def start(self, seed: int) -> State:
        return State(self.like.new_zeros(1, self.channels, self.span), self.early)

    def window(self, x: torch.Tensor, state: State, after: int) -> torch.Tensor:
        """The kept inputs, x, and `after` zeros; what the next call needs is kept. [B, C, span + n + after]."""
        assert state.kept is not None
        x = torch.cat([state.kept, x], -1)
        if after:
            return F.pad(x, (0, after))
        state.kept = x[..., x.shape[-1] - self.span :].clone()
        return x

    def late(self, y: torch.Tensor, state: State) -> torch.Tensor:
        """`y` without the outputs that stand before the sequence."""
        dropped = min(state.skip, y.shape[-1])
        state.skip -= dropped
        return y[..., dropped:]


class Conv(_Windowed):
    """`torch.nn.Conv1d` with stride 1."""

    def __init__(self, conv: Any) -> None:
        if conv.stride != (1,) or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
            raise TypeError(f"can't stream {conv}")
        self.weight, self.bias = _weights(conv)
        (self.padding,), (self.dilation,), self.groups = conv.padding, conv.dilation, conv.groups
        self.channels, self.out_channels = conv.in_channels, conv.out_channels
        self.span = (conv.kernel_size[0] - 1) * self.dilation
        self.early = self.span - self.padding
        self.like = self.weight

    def push(self, x: torch.Tensor, state: State, last: bool) -> torch.Tensor:
        if self.span:
            x = self.window(x, state, self.padding if last else 0)
        if x.shape[-1] <= self.span:
            return x.new_zeros(len(x), self.out_channels, 0)
        return self.late(F.conv1d(x, self.weight, self.bias, dilation=self.dilation, groups=self.groups), state)

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        # Output o reads the inputs o - padding .. o - padding + span.
        return start + self.padding - self.span, stop + self.padding


class Upsample(_Windowed):
    """`torch.nn.ConvTranspose1d`: input i adds to the outputs [i * stride, i * stride + kernel), less the padding."""

    def __init__(self, conv: Any) -> None:
        if conv.dilation != (1,) or conv.groups != 1:
            raise TypeError(f"can't stream {conv}")
        self.weight, self.bias = _weights(conv)
        (self.stride,), (kernel,), (self.padding,) = conv.stride, conv.kernel_size, conv.padding
        self.kernel = kernel
        self.channels, self.out_channels = conv.in_channels, conv.out_channels
        self.span = -(-kernel // self.stride) - 1  # inputs before the newest that add to the newest's outputs
        self.early = self.padding
        cut = self.padding - conv.output_padding[0]  # outputs missing at the right end
        self.tail = kernel - self.stride - cut  # outputs after those of the last input's own stride
        if cut < 0 or self.tail < 0:
            raise TypeError(f"can't stream {conv}")
        self.like = self.weight
        # [D * stride, C * (span + 1)]: times an input and the `span` before it, it gives the outputs of one stride.
        taps = F.pad(self.weight, (0, (self.span + 1) * self.stride - kernel)).unflatten(-1, (-1, self.stride))
        self.matrix = taps.permute(1, 3, 2, 0).flatten(2).flatten(0, 1).contiguous()

    def push(self, x: torch.Tensor, state: State, last: bool) -> torch.Tensor:
        inputs = x.shape[-1]
        x = self.window(x, state, self.span if last else 0)
        if x.shape[-1] <= self.span:
            return x.new_zeros(len(x), self.out_channels, 0)
        few = x.device.type == "cpu" and len(x) * (x.shape[-1] - self.span) <= FEW
        y = self._product(x) if few else self._convolution(x)
        if last:
            y = y[..., : inputs * self.stride + self.tail]
        return self.late(y, state)

    def _convolution(self, x: torch.Tensor) -> torch.Tensor:
        y = F.conv_transpose1d(x, self.weight, self.bias, self.stride)
        return y[..., self.span * self.stride : x.shape[-1] * self.stride]

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        """The same as one matrix product: for a few inputs on a CPU, PyTorch's own takes several times as long."""
        count = x.shape[-1] - self.span
        taps = torch.cat([x[..., self.span - t : self.span - t + count] for t in range(self.span + 1)], 1)
        y = F.linear(taps.transpose(1, 2), self.matrix).unflatten(2, (self.out_channels, self.stride))
        y = y.transpose(1, 2).flatten(2)
        return y if self.bias is None else y.add_(self.bias[:, None])

    def reach(self, start: int, stop: int) -> tuple[int, int]:
        return start * self.stride - self.padding, (stop - 1) * self.stride + self.kernel - self.padding


class Pointwise:
    """A function of each sample alone."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.function = function

    def start(self, seed: int) -> State:
        return State()

    def push(self, x: torch.Tensor, state: State, last: bool) -> torch.Tensor:
        return self.function(x)

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
        super().__init__(lambda x: F.conv1d(x, weight))
        self.block = block

    def start(self, seed: int) -> State:
        return State(noise=[np.random.Generator(np.random.Philox([seed, self.block]))])

    def push(self, x: torch.Tensor, state: State, last: bool) -> torch.Tensor:
        if not x.shape[-1]:
            return x
        noise = np.stack([row.standard_normal((1, x.shape[-1]), dtype=np.float32) for row in state.noise])
        return x + torch.from_numpy(noise).to(x) * self.function(x)


def snake(alpha: torch.Tensor) -> Pointwise:
    """x + sin²(alpha x) / alpha, SNAC's activation, with alpha [1, C, 1]."""
    alpha = alpha.detach().clone()
    inverse = (alpha + 1e-9).reciprocal()
    return Pointwise(lambda x: (alpha * x).sin_().square_().mul_(inverse).add_(x))


def _weights(conv: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias as plain tensors: weight normalisation is applied here, once, and not at each call."""
    return conv.weight.detach().clone(), None if conv.bias is None else conv.bias.detach().clone()


def streaming_decoder(model: Any, kinds: Any) -> tuple[list[torch.Tensor], Chain]:
    """SNAC's decoder as a stream: for each codebook the latents of its codes [4096, D], and the layers after them.

    `kinds` is the module `snac.layers`.
    """
    noise_blocks = 0

    def convert(module: Any) -> Any:
        nonlocal noise_blocks
        if isinstance(module, torch.nn.Sequential):
            return Chain([convert(child) for child in module])
        if isinstance(module, kinds.DecoderBlock):
            return convert(module.block)
        if isinstance(module, kinds.ResidualUnit):
            return Residual(convert(module.block).layers)
        if isinstance(module, kinds.NoiseBlock):
            noise_blocks += 1
            return Noise(module.linear, block=noise_blocks)
        if isinstance(module, kinds.Snake1d):
            return snake(module.alpha)
        if isinstance(module, torch.nn.Conv1d):
            return Conv(module)
        if isinstance(module, torch.nn.ConvTranspose1d):
            return Upsample(module)
        if isinstance(module, torch.nn.Tanh):
            return Pointwise(torch.tanh)
        raise TypeError(f"SNAC's decoder has a layer that is unknown here: {type(module).__name__}")

    with torch.inference_mode():
        tables = [q.out_proj(q.codebook.weight.T[None])[0].T.contiguous() for q in model.quantizer.quantizers]
        return tables, convert(model.decoder.model)


def shifted(
    weight: torch.Tensor, bias: torch.Tensor | None, padding: int, dilation: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A dilated convolution of each channel by itself (weight [C, 1, k]), for a CPU: a sum of shifted products.

    PyTorch's own takes 2 to 5 times as long (benchmarks/LOG.md). These sums are the very same: oneDNN adds the products
    in this order, too, each by one fused operation, and the bias at last.
    """
    taps = weight.permute(2, 0, 1).contiguous()  # [k, C, 1]

    def convolve(x: torch.Tensor) -> torch.Tensor:
        count = x.shape[-1] + 2 * padding - (len(taps) - 1) * dilation
        out = x.new_empty(*x.shape[:2], count)
        channels = max(1, BLOCK // (len(x) * count))
        for first in range(0, x.shape[1], channels):
            some = slice(first, first + channels)
            wide = F.pad(x[:, some], (padding, padding))
            part = torch.mul(wide[..., :count], taps[0, some], out=out[:, some])
            for tap in range(1, len(taps)):
                part.addcmul_(wide[..., tap * dilation : tap * dilation + count], taps[tap, some])
            if bias is not None:
                part.add_(bias[some, None])
        return out

    return convolve


def folded_encoder(model: Any, kinds: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """SNAC's encoder, [B, 1, N] -> [B, D, N / 512], with the same sums in the same order: the codes are the very same.

    Weight normalisation is applied once, the activations work in place, and on a CPU the dilated convolutions are
    computed by `shifted`.
    """

    def convert(module: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        if isinstance(module, kinds.EncoderBlock):
            return convert(module.block)
        if isinstance(module, kinds.ResidualUnit):
            inner = convert(module.block)
            return lambda x: inner(x).add_(x)
        if isinstance(module, torch.nn.Sequential):
            steps = [convert(child) for child in module]
            return lambda x: reduce(lambda y, step: step(y), steps, x)
        if isinstance(module, kinds.Snake1d):
            return snake(module.alpha).function
        if isinstance(module, torch.nn.Conv1d):
            weight, bias = _weights(module)
            (stride,), (dilation,) = module.stride, module.dilation
            depthwise = module.groups == module.in_channels == module.out_channels
            if depthwise and dilation > 1 and stride == 1 and weight.device.type == "cpu":
                return shifted(weight, bias, int(module.padding[0]), dilation)
            shape: dict[str, Any] = dict(
                stride=module.stride, padding=module.padding, dilation=module.dilation, groups=module.groups
            )
            return lambda x: F.conv1d(x, weight, bias, **shape)
        raise TypeError(f"SNAC's encoder has a layer that is unknown here: {type(module).__name__}")

    return convert(model.encoder.block)
