"""One training a folder: who works there, whether it is done, what an interruption leaves and how to go on from it."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orpheus.errors import UserError, disk_errors
from orpheus.model.adapter import ADAPTER_WEIGHTS
from orpheus.model.provenance import Provenance, write_json
from orpheus.processes import is_main

log = logging.getLogger(__name__)

FOLDER, RUN_FILE, LOCK_FILE = "checkpoints", "run.json", ".training.lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within it no other training works in `folder`. UserError, saying who does, if one does already.

    The system's lock on a file ends with the process, however that ends. Of several processes that train together the
    first holds it.
    """
    if not is_main():
        yield
        return
    path = folder / LOCK_FILE
    with disk_errors(f"can't write to {folder}", "choose another --output-dir"):
        folder.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _locked(path: Path) -> int:
    """The descriptor of the locked file, with this process's number and the time in it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(file)):
                os.ftruncate(file, 0)
                os.write(file, f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}".encode())
                return file
        except BlockingIOError as error:
            holder = os.read(file, 200).decode(errors="replace")
            os.close(file)
            raise UserError(
                f"another training works in {path.parent} ({holder or 'just started'}): wait for it, or choose "
                "another --output-dir"
            ) from error
        os.close(file)  # its holder ended and took the file away in between


def is_finished(folder: Path, config: dict[str, Any], *, resume: bool, overwrite: bool) -> bool:
    """Whether `folder` holds the adapter that a training with this `config` (`as_dict` of its options) makes.

    Then there is nothing left to train. UserError for a finished adapter that must not be replaced unasked.
    """
    unfinished = resume and _whole(folder / FOLDER)  # begun with leave to replace it
    if overwrite or unfinished or not (folder / ADAPTER_WEIGHTS).is_file():
        return False
    made = Provenance.load(folder)
    if resume and made and _shaping(made.config) == _shaping(json.loads(json.dumps(config))):
        return True
    raise UserError(
        f"{folder} holds a finished adapter: give this training another folder (--output-dir {_free_name(folder)}), or "
        "replace it with --overwrite"
    )


def _shaping(config: dict[str, Any]) -> Any:
    """The options that shape an adapter."""
    free = ("resume", "log_every", "eval_every", "save_every", "push_to_hub", "hub_repo_id", "cache_dir")
    parts = {name: config.get(name) for name in ("model", "corpus", "lora", "train")}
    return {
        name: {key: value for key, value in part.items() if key not in free} if isinstance(part, dict) else None
        for name, part in parts.items()
    }


def _free_name(folder: Path) -> Path:
    number = 2
    while (name := folder.with_name(f"{folder.name}_{number}")).exists():
        number += 1
    return name


def _whole(folder: Path) -> dict[int, Path]:
    """The checkpoints by their steps. The trainer's state is written last: without it one was cut off while saving."""
    return {int(p.parent.name[11:]): p.parent for p in folder.glob("checkpoint-*/trainer_state.json")
            if p.parent.name[11:].isdecimal()}  # fmt: skip


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
    whole = _whole(folder)
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


def may_be_damage(error: Exception) -> bool:
    """Whether a damaged checkpoint can be the cause: not where memory or the disk is full."""
    import torch

    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return not full and not isinstance(error, (UserError, MemoryError, torch.OutOfMemoryError))
