"""What the steps of the smoke test share: their settings, how they fail, how they count memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import peak_rss_bytes


class Failed(Exception):
    """A step ran and its result is wrong."""


@dataclass(frozen=True)
class Settings:
    """What all steps share."""

    device: str
    base: str
    codec: str
    work: str
    train_steps: int
    batch: tuple[int, int]  # clips per forward pass, forward passes per step
    clips: int
    clip_s: float  # mean length of a clip
    tokens: int  # to generate for a prompt, at most

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA GPU."""
        return self.device.startswith("cuda")

    def folder(self, step: str) -> Path:
        """Where a step leaves its files."""
        return Path(self.work) / step


def check(holds: bool, otherwise: str) -> None:
    """`Failed` with that message unless it holds."""
    if not holds:
        raise Failed(otherwise)


def memory(settings: Settings) -> dict[str, float]:
    """Peak memory so far in GB (10^9 bytes): what PyTorch took from the GPU, or what the process had of the CPU's."""
    if not settings.on_gpu:
        return {"peak_gb": round(peak_rss_bytes() / 1e9, 2)}
    import torch

    return {"peak_gb": round(torch.cuda.max_memory_reserved() / 1e9, 2),
            "peak_allocated_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            "peak_rss_gb": round(peak_rss_bytes() / 1e9, 2)}  # fmt: skip
