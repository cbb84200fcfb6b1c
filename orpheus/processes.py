"""Several processes for one job, as `accelerate launch` starts them: which one this is, and waiting for the others.

It sets RANK, WORLD_SIZE and LOCAL_RANK as torchrun does, on one machine or on many. Without it there is one process.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any


def rank() -> int:
    """This process's number among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes do the job; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process writes the results and talks."""
    return rank() == 0


def local_device(device: str) -> str:
    """'cuda' as this process's own GPU; any other device, and without a launcher every one, as it is."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if device == "cuda" and world_size() > 1 else device


def environment_alone() -> dict[str, str]:
    """The environment for a program that is started by one of the processes and is not one of them."""
    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    return {name: value for name, value in os.environ.items() if name not in told}


def wait_for_all() -> None:
    """Return when every process has come here; at once where there is only one."""
    if world_size() > 1:
        _state().wait_for_everyone()


@cache
def _state() -> Any:
    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        # accelerate calls each process's CPU 'cpu:0', and resuming asks torch.load to put tensors there, which it
        # does not know how to do.
        torch.serialization.register_package(
            100, lambda storage: None, lambda storage, place: storage if place == "cpu:0" else None
        )
    # Told nothing, it takes processes without a GPU for independent ones and does not wait.
    return PartialState(cpu=on_cpu)
