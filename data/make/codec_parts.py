"""Parts of the tiny codec's training: spectral losses, the quantiser with k-means, the throw-away mel head."""

from __future__ import annotations

import librosa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONFIG = {
    "sampling_rate": 24000,
    "encoder_dim": 8,
    "encoder_rates": [2, 4, 8, 8],
    "decoder_dim": 320,
    "decoder_rates": [4, 4, 2, 16],
    "attn_window_size": None,
    "codebook_size": 4096,
    "codebook_dim": 8,
    "vq_strides": [4, 2, 1],
    "noise": True,
    "depthwise": True,
}
HOP = 512
FRAME = 2048  # samples of one frame: seven codes
FLOOR = 1e-5  # of the window's length: a mean magnitude below it, 68 dB under a tone of 0.1, counts as silence
FINE_MELS = 48  # bands of the short windows that the encoder's teacher predicts


class LogMel(nn.Module):
    """Magnitude spectrogram and log10 mel spectrogram of [B, N] audio; n_fft // hop frames overlap."""

    def __init__(self, n_fft: int, hop: int, mels: int) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("window", torch.hann_window(n_fft))
        filters = librosa.filters.mel(sr=24000, n_fft=n_fft, n_mels=mels, fmin=0, fmax=None)
        # Each band is a mean: librosa's own norm makes high bands small, and the floor then hides the fricatives.
        self.register_buffer("filters", torch.tensor(filters / filters.sum(1, keepdims=True)))
        self.floor = FLOOR * n_fft

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.stft(x, self.n_fft, self.hop, self.n_fft, self.window, pad_mode="reflect", return_complex=True)
        magnitude = (s.real.square() + s.imag.square() + 1e-9).sqrt()
        return magnitude, (self.filters @ magnitude).clamp(min=self.floor).log10()


class SpectralLoss(nn.Module):
    """Mean absolute log-mel error over five window lengths, plus a small linear magnitude error."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(2048, 512, 100), (1024, 256, 80), (512, 128, 48), (256, 64, 24), (128, 32, 12)]
        self.scales = nn.ModuleList(LogMel(*size) for size in sizes)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """Loss of the generated [B, N] `y` against `x`."""
        total = y.new_zeros(())
        for scale in self.scales:
            with torch.no_grad():
                sx, lx = scale(x)
            sy, ly = scale(y)
            total = total + (ly - lx).abs().mean() + 0.05 * (sy - sx).abs().mean() / (sx.mean() + 1e-3)
        return total


class MelHead(nn.Module):
    """Predicts log mels of each hop from quantised latents: the encoder's teacher, thrown away afterwards."""

    def __init__(self, channels: int, hidden: int = 320) -> None:
        super().__init__()
        self.coarse, self.fine = LogMel(2048, HOP, 128), LogMel(512, HOP // 4, FINE_MELS)
        self.a = nn.Conv1d(channels, hidden, 5, padding=2)
        self.b = nn.Conv1d(hidden, hidden, 3, padding=1)
        self.c = nn.Conv1d(hidden, 128 + 4 * FINE_MELS, 1)

    def forward(self, z: Tensor) -> Tensor:
        h = F.gelu(self.a(z))
        return self.c(h + F.gelu(self.b(h)))

    def error(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean absolute errors of the log mels of `x` and of their envelopes over neighbouring bands.

        Harmonics make most of the first; vowels are told apart by the second.
        """
        difference = self(z) - self.target(x)
        bands = [difference[:, :128], *difference[:, 128:].view(len(x), FINE_MELS, 4, -1).unbind(2)]
        envelopes = [
            F.avg_pool1d(part.transpose(1, 2), width).abs().mean()
            for part, width in zip(bands, [8, 4, 4, 4, 4], strict=True)
        ]
        return difference.abs().mean(), envelopes[0] + sum(envelopes[1:]) / 4

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        """[B, 128 + 4 * FINE_MELS, hops] of [B, N] audio: one long window and four short ones for each hop."""
        hops = x.shape[-1] // HOP
        coarse = self.coarse(x)[1][..., : hops + 1]
        coarse = (coarse[..., :-1] + coarse[..., 1:]) / 2
        fine = self.fine(x)[1][..., : 4 * hops].reshape(len(x), FINE_MELS, hops, 4)
        return torch.cat([coarse, fine.permute(0, 1, 3, 2).reshape(len(x), 4 * FINE_MELS, hops)], 1)


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codebook entry with the largest cosine to each row of `x`, as SNAC chooses it."""
    unit = F.normalize(codebook).t()
    return torch.cat([(F.normalize(part) @ unit).argmax(1) for part in x.split(8192)])


def kmeans(x: Tensor, size: int, codebook: Tensor | None = None, rounds: int = 6) -> tuple[Tensor, float]:
    """Codebook of `size` means (empty ones restarted at random rows) and the share of entries in use."""
    if codebook is None:
        codebook = x[torch.randperm(len(x))[:size]].clone()
    count = torch.ones(size)
    for _ in range(rounds):
        index = nearest(x, codebook)
        count = torch.bincount(index, minlength=size).to(x.dtype)
        sums = torch.zeros_like(codebook).index_add_(0, index, x)
        fresh = x[torch.randint(len(x), (size,))]
        codebook = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], fresh)
    return codebook, float((count > 0).float().mean())


class Quantiser:
    """SNAC's residual quantiser in training: straight-through, only the first `sizes` entries of each codebook."""

    def __init__(self, quantizer: nn.Module, sizes: list[int], keep: int = 30) -> None:
        self.quantizers, self.sizes, self.keep = list(quantizer.quantizers), sizes, keep
        self.on = False
        self.seen: list[list[Tensor]] = [[] for _ in sizes]

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantised latents (as they are while off) and the codebook loss of [B, C, T] latents."""
        out, loss = torch.zeros_like(z), z.new_zeros(())
        for i, q in enumerate(self.quantizers):
            r = F.avg_pool1d(z - out, q.stride, q.stride) if q.stride > 1 else z - out
            e = q.in_proj(r)
            rows = e.detach().transpose(1, 2).reshape(-1, e.shape[1])
            self.seen[i].append(rows)
            if len(self.seen[i]) > self.keep * self.sizes[i] // len(rows) + 1:
                del self.seen[i][0]
            if self.on:
                index = nearest(rows, q.codebook.weight.detach()[: self.sizes[i]])
                quantised = q.codebook(index).view(e.shape[0], -1, e.shape[1]).transpose(1, 2)
                loss = loss + 0.25 * F.mse_loss(e, quantised.detach()) + F.mse_loss(quantised, e.detach())
                e = e + (quantised - e).detach()
            o = q.out_proj(e)
            out = out + (o.repeat_interleave(q.stride, -1) if q.stride > 1 else o)
            if self.on:  # each level must approach the latents themselves, or the next has no smaller rest to code
                loss = loss + 0.1 * (F.mse_loss(out, z.detach()) + F.mse_loss(z, out.detach())) / z.detach().var()
        return out, loss

    @torch.no_grad()
    def refit(self) -> list[float]:
        """(Re)fit the codebooks to the latents seen lately and switch quantisation on. Shares of used entries."""
        used = []
        for q, size, seen in zip(self.quantizers, self.sizes, self.seen, strict=True):
            start = q.codebook.weight.data[:size] if self.on else None
            codebook, share = kmeans(torch.cat(seen), size, start)
            q.codebook.weight.data[:size] = codebook
            q.codebook.weight.data[size:] = 0
            used.append(round(share, 3))
        self.on = True
        return used


@torch.no_grad()
def fit_codebooks(quantizer: nn.Module, z: Tensor, sizes: list[int], rounds: int = 12) -> list[float]:
    """Fit all codebooks to the [C, T] latents `z`; entries past `sizes` become zero and are never nearest.

    Returns the relative error that is left after each level.
    """
    rest, errors = z.clone(), []
    energy = (z - z.mean(1, keepdim=True)).square().sum()
    for q, size in zip(quantizer.quantizers, sizes, strict=True):
        r = F.avg_pool1d(rest[None], q.stride, q.stride)
        rows = q.in_proj(r)[0].t().contiguous()
        sample = rows[torch.randperm(len(rows))[: 60 * size]]
        codebook, _ = kmeans(sample, size, q.codebook.weight.data[:size].clone(), rounds)
        q.codebook.weight.data[:size] = codebook
        q.codebook.weight.data[size:] = 0
        o = q.out_proj(codebook[nearest(rows, codebook)].t()[None])[0]
        rest -= o.repeat_interleave(q.stride, 1)
        errors.append(round(float(rest.square().sum() / energy), 4))
    return errors
