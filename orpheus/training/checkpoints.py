"""What an interruption leaves and how training goes on from it: Ctrl-C, whole checkpoints, a full disk."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orpheus.errors import UserError
from orpheus.model.provenance import write_json

log = logging.getLogger(__name__)

FOLDER, RUN_FILE = "checkpoints", "run.json"


class Interrupt:
    """True once Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.pressed = False

    def __bool__(self) -> bool:
        return self.pressed


@contextmanager
def stop_on_interrupt() -> Iterator[Interrupt]:
    """Within it Ctrl-C finishes the step and saves; a second Ctrl-C stops at once."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt  # signals reach the main thread only
        return

    def handle(*_: Any) -> None:
        if interrupt.pressed:
            raise KeyboardInterrupt
        interrupt.pressed = True
        print("\nstopping after this step and saving a checkpoint (Ctrl-C again: stop at once)", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)


def find_checkpoint(folder: Path, resume: bool, identity: dict[str, Any], writes: bool = True) -> Path | None:
    """The newest whole checkpoint to go on from, or None to start. UserError if what is there is another run's.

    To start, what is there is deleted and this run's identity written down, unless another process `writes`.
    """
    # The trainer's state is written last: a checkpoint without it was cut off while saving.
    whole = {int(p.parent.name[11:]): p.parent for p in folder.glob("checkpoint-*/trainer_state.json")
             if p.parent.name[11:].isdecimal()}  # fmt: skip
    newest = whole[max(whole)] if whole else None
    if newest is None and not writes:
        return None
    if newest is None:
        if resume:
            log.info("there is no checkpoint in %s to resume: starting from the beginning", folder)
        shutil.rmtree(folder, ignore_errors=True)
        write_json(folder / RUN_FILE, identity)
        return None
    if not resume:
        raise UserError(
            f"{folder} holds the checkpoints of an unfinished training (up to {newest.name}): go on with "
            "--resume, or delete that folder to start again"
        )
    try:
        before = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    now = json.loads(json.dumps(identity, default=str))
    different = sorted(k for k in now if before.get(k) != now[k])
    if different:
        changes = "; ".join(f"{k} was {before.get(k)}, is {now[k]}" for k in different)
        raise UserError(
            f"can't resume from {newest}: {changes}. Use the options of that run, or delete {folder} to start again"
        )
    log.info("resuming from %s", newest)
    return newest


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a finished training; the adapter is saved and they are large."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
