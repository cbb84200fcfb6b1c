"""A tiny SNAC of the real format, and sound to feed it. Seeded, made in half a second, nothing downloaded."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from snac import SNAC
from torch.nn import functional as F

# The published config (hubertsiuzdak/snac_24khz); the tiny one differs in its widths alone.
PUBLISHED: dict[str, Any] = {
    "sampling_rate": 24000, "encoder_dim": 48, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 1024,
    "decoder_rates": [8, 8, 4, 2], "attn_window_size": None, "codebook_size": 4096, "codebook_dim": 8,
    "vq_strides": [4, 2, 1], "noise": True, "depthwise": True,
}  # fmt: skip
TINY = {**PUBLISHED, "encoder_dim": 4, "decoder_dim": 32}


@functools.cache
def tiny_snac(seed: int = 0) -> SNAC:
    """A SNAC with 0.3 M random weights, shared between tests: don't change it.

    Random weights alone give nearly the same code for every sound. So each quantiser is fitted to the
    latents it gets, as training would do: centred, and with codebook entries spread as the latents are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SNAC(**TINY).eval()
        sound = np.stack([speech_like(2.0, seed=1000 + i) for i in range(4)])
        with torch.inference_mode(False), torch.no_grad():
            residual = model.encoder(model.preprocess(torch.from_numpy(sound)[:, None]))
            for quantizer in model.quantizer.quantizers:
                projected = quantizer.in_proj(F.avg_pool1d(residual, quantizer.stride)).transpose(1, 2).reshape(-1, 8)
                quantizer.in_proj.bias -= projected.mean(0)
                spread = torch.linalg.cholesky(torch.cov(projected.T) + 1e-8 * torch.eye(8))
                quantizer.codebook.weight.copy_(torch.randn_like(quantizer.codebook.weight) @ spread.T)
                residual = residual - quantizer(residual)[0]
    return model


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Float32 [N] at 24 kHz: a gliding voice with changing overtones, hisses between."""
    rng = np.random.default_rng(seed)
    n = round(seconds * 24000)
    knots = max(2, n // 1500)

    def curve(low: float, high: float) -> np.ndarray:
        return np.interp(np.arange(n), np.linspace(0, n, knots), rng.uniform(low, high, knots))

    phase = np.cumsum(2 * np.pi * curve(90, 300) / 24000)
    voice = sum(curve(0, 1 / k) * np.sin(k * phase) for k in (1, 2, 3, 5, 8, 13, 21))
    return (0.2 * voice + 0.1 * curve(-1, 1).clip(0) * rng.standard_normal(n)).astype(np.float32)
