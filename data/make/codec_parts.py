"""Parts of the tiny codec's training: its shape, the fixed quantiser, the spectral loss."""

from __future__ import annotations

import math
from typing import Any

import librosa
import numpy as np
import torch
from codebooks import NORM, WIDTH
from torch import Tensor, nn

CONFIG: dict[str, Any] = {
    "sampling_rate": 24000,
    "encoder_dim": 16,
    "encoder_rates": [8, 4, 4, 4],
    "decoder_dim": 384,
    "decoder_rates": [2, 4, 4, 16],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": WIDTH,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
HOP = 512
FLOOR = 1e-5  # of the window's length: a mean magnitude below it, 68 dB under a tone of 0.1, counts as silence


@torch.no_grad()
def fix_quantiser(quantizer: nn.Module, entries: list[np.ndarray]) -> None:
    """Write the codebooks; each level reads and writes `WIDTH` latents of its own, so none depends on another.

    Entries that are not in use point along the one axis that no latent has: they are never the nearest.
    """
    for level, (q, rows) in enumerate(zip(quantizer.quantizers, entries, strict=True)):
        q.codebook.weight.zero_()
        q.codebook.weight[:, -1] = NORM
        q.codebook.weight[: len(rows)] = torch.from_numpy(rows).float()
        own = slice(level * WIDTH, (level + 1) * WIDTH)
        for conv, into in ((q.in_proj, True), (q.out_proj, False)):
            weight = torch.zeros(conv.weight.shape[:2])
            if into:
                weight[:, own] = torch.eye(WIDTH)
            else:
                weight[own] = torch.eye(WIDTH)
            set_weight(conv, weight[..., None])
            conv.bias.zero_()
        magnitude(q.in_proj)[-1] = 0


def magnitude(conv: Any) -> Tensor:
    """The lengths [D, 1, 1] of the rows of a convolution with weight normalisation."""
    return conv.parametrizations.weight.original0


def set_weight(conv: Any, weight: Tensor) -> None:
    """Give a convolution with weight normalisation these weights; rows of zeros keep a direction."""
    length = weight.flatten(1).norm(dim=1)[:, None, None]
    filled = torch.where(length > 0, weight, torch.ones_like(weight))
    conv.parametrizations.weight.original0.copy_(length)
    conv.parametrizations.weight.original1.copy_(filled)


def latent_parts(z: Tensor) -> list[Tensor]:
    """What each level compares with its entries: [B, WIDTH, T / stride] of the encoder's [B, C, T]."""
    parts = [z[:, level * WIDTH : (level + 1) * WIDTH - 1] for level in range(3)]
    return [
        nn.functional.avg_pool1d(part, stride) if stride > 1 else part
        for part, stride in zip(parts, (4, 2, 1), strict=True)
    ]


class LogMel(nn.Module):
    """Magnitude spectrogram and log10 mel spectrogram of [B, N] audio; n_fft // hop frames overlap."""

    def __init__(self, n_fft: int, hop: int, mels: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))
        filters = librosa.filters.mel(sr=24000, n_fft=n_fft, n_mels=mels, fmin=0, fmax=None)
        # Each band is a mean: librosa's own norm makes high bands small, and the floor then hides the fricatives.
        self.register_buffer("filters", torch.tensor(filters / filters.sum(1, keepdims=True)))
        centres_hz = librosa.mel_frequencies(mels + 2, fmin=0, fmax=12000)[1:-1]
        bands = np.interp(centres_hz, [600, 1200, 4000, 6000], [1, 2, 2, 0.5])
        self.register_buffer("bands", torch.tensor(bands[:, None], dtype=torch.float32))
        self.floor = FLOOR * n_fft

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.stft(x, self.n_fft, self.hop, self.n_fft, self.window, pad_mode="reflect", return_complex=True)
        magnitude = (s.real.square() + s.imag.square() + 1e-9).sqrt()
        return magnitude, (self.filters @ magnitude).clamp(min=self.floor).log10()


class Picture(nn.Module):
    """What both halves of the codec learn to know before they learn the rest: of each 128 samples of [B, N] audio the
    log mels and, as pulses are seen by it, the log power of each 32 samples: [B, WIDTH, N / 128]."""

    HOP, MELS, SHORT = 128, 40, 32
    WIDTH = MELS + HOP // SHORT

    def __init__(self) -> None:
        super().__init__()
        self.mels = LogMel(2 * self.HOP, self.HOP, self.MELS)

    def forward(self, x: Tensor) -> Tensor:
        mels = self.mels(x)[1][..., :-1]
        power = nn.functional.avg_pool1d(x[:, None].square(), self.SHORT)[:, 0].add(1e-7).log10()
        return torch.cat([mels, 0.5 * power.unflatten(-1, (-1, self.HOP // self.SHORT)).transpose(1, 2)], 1)


class Ear(nn.Module):
    """The encoder without its first three blocks: hears pictures, at a thirtieth of the price. `feed` makes of one
    what the third block has to make of the samples."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.feed = nn.Conv1d(Picture.WIDTH, CONFIG["encoder_dim"] * 8, 1)
        self.rest = encoder.block[4:]

    def forward(self, picture: Tensor) -> Tensor:
        return self.rest(self.feed(picture))


class Sketch(nn.Module):
    """The decoder without all but its first block: draws pictures, at a thirtieth of the price. In the training of the
    whole, it keeps that block to it: a decoder learns to draw a voice long before it learns which sound to give it."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        blocks = [type(part).__name__ for part in decoder.model]
        self.first = decoder.model[: blocks.index("DecoderBlock") + 1]
        self.first[-1].register_forward_hook(self._keep)
        self.each = HOP // CONFIG["decoder_rates"][0] // Picture.HOP
        self.head = nn.Conv1d(CONFIG["decoder_dim"] // 2, Picture.WIDTH * self.each, 1)

    def _keep(self, block: nn.Module, inputs: object, output: Tensor) -> None:
        self.known = output

    def error(self, wanted: Tensor) -> Tensor:
        """Mean absolute error of the picture that the last output of the first block tells, the ends left out."""
        named = self.head(self.known).unflatten(1, (self.each, -1)).permute(0, 2, 3, 1).flatten(2)
        return (named - wanted)[..., 8:-8].abs().mean()


class SpectralLoss(nn.Module):
    """Weighted log-mel error over three window lengths, plus a small linear magnitude error.

    What Whisper misses of a decoder's words is in the formants: with the bands from 1.2 to 4 kHz mended, or the loud
    frames, or errors above 5 dB, it hears nearly the originals; the rest mended helps less. So these weigh most.
    """

    def __init__(self) -> None:
        super().__init__()
        sizes = [(2048, 512, 100), (512, 128, 48), (128, 32, 12)]
        self.scales = nn.ModuleList(LogMel(*size) for size in sizes)

    def forward(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the generated [B, N] `y` against `x`, and the mean absolute log-mel errors, unweighted."""
        total, plain = y.new_zeros(()), y.new_zeros(())
        for scale in self.scales:
            with torch.no_grad():
                sx, lx = scale(x)
                weight = scale.bands * (0.4 + (lx - math.log10(scale.floor)).clamp(max=1.6))
                weight /= weight.mean()
            sy, ly = scale(y)
            error = (ly - lx).abs()
            total = total + (weight * error * (1 + 3 * error)).mean()
            total = total + 0.05 * (sy - sx).abs().mean() / (sx.mean() + 1e-3)
            plain = plain + error.detach().mean()
        return total, plain
