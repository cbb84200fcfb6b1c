"""With how many threads PyTorch computes on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

NARROW = 512
"""Channels of a network whose layers are too small to share: its threads would mostly wait for each other."""


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """So many threads for what this thread computes meanwhile, then as many as before; None changes nothing."""
    import torch

    before = torch.get_num_threads()
    if count is None:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
