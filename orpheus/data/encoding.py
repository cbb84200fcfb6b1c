"""Recordings to codes without waiting: readers ahead of the encoder, the encoder in a thread of its own, parts.

    records ─► threads that read, resample, hash ─► checks, in order ─► windows of clips ─► encoder ─► cache

Reading is done by libsndfile, soxr, NumPy and hashlib, which work outside Python's lock, as PyTorch does: so threads
are enough, and clips need not be copied between processes. Held at a time: some clips a thread, one window that is
filled and one that is encoded.

Many GPUs or machines: each process takes every n-th row (`Part`) and writes into the same kind of cache. A later run
over everything finds all codes there, so nothing else has to merge. The processes are started by `accelerate launch`,
which training uses anyway and which sets the rank on one machine and on many; Ray Data would bring a scheduler and an
object store of its own, for work without any exchange between the parts.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import os
import re
import sys
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np

from orpheus.audio import recordings
from orpheus.errors import UserError
from orpheus.format.tokens import ORPHEUS, Codes

if TYPE_CHECKING:
    from orpheus.codec.snac import SnacCodec
    from orpheus.data.sources import Progress

WINDOW_S = 1800.0  # audio collected (173 MB) before it is encoded: a GPU takes clips with as many frames at once
BATCH_S = 60.0  # audio in one call of the codec; each call's codes are kept at once
MOST_READERS = 16  # threads; reading is far faster than encoding
AHEAD = 4  # recordings that each reader may be ahead

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Part:
    """The rows index, index + count, index + 2 count, ... of a data set: one process's share."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Part:
        """'i/n' with 0 <= i < n. UserError for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        part = cls(int(found[1]), int(found[2])) if found else None
        if part is None or part.index >= part.count:
            raise UserError(f"the shard is '{text}', expected i/n with i from 0 to n - 1, such as 0/2 and 1/2")
        return part

    def of(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items of this part, in order."""
        return itertools.islice(items, self.index, None, self.count)

    def size(self, count: int) -> int:
        """How many of `count` items are in this part."""
        return len(range(self.index, count, self.count))


def read_ahead(
    items: Iterable[Item], read: Callable[[Item], Result], readers: int | None = None
) -> Generator[tuple[Item, Callable[[], Result]], None, None]:
    """Each item in order, with a function that waits for `read(item)` and returns it or raises what it raised.

    `readers` threads (by default one a core, 16 at most) read ahead, at most `AHEAD` items each. Close the iterator to
    stop them.
    """
    count = readers or min(MOST_READERS, cores())
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    pool = ThreadPoolExecutor(count, thread_name_prefix="reader")
    try:
        for item in items:
            waiting.append((item, pool.submit(read, item)))
            if len(waiting) > AHEAD * count:
                item, future = waiting.popleft()
                yield item, future.result
        while waiting:
            item, future = waiting.popleft()
            yield item, future.result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Encoder:
    """Codes by content key, from the cache or from the codec. One small file a clip: what is encoded stays encoded.

    A window of clips is encoded in a thread while the next is collected. A context manager: leaving it stops the thread
    after the call of the codec that is under way. Raises what the thread raised, at the next window or at `flush`.
    """

    def __init__(self, codec: SnacCodec, cache_dir: Path, shown: Progress) -> None:
        self.codec = codec
        self.shown = shown
        self.codes: dict[str, Codes] = {}  # int16, 165 bytes a second of speech
        self._waiting: dict[str, np.ndarray] = {}
        self._encoding: dict[str, np.ndarray] = {}
        self._running: Future[None] | None = None
        self._stopped = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._folder = cache_dir / codec.identity
        # Backup programs know this file (bford.info/cachedir); and a cache that can't be written shows at once.
        with recordings.atomic_path(cache_dir / "CACHEDIR.TAG", overwrite=True) as partial:
            partial.write_text("Signature: 8a477f597d28d172789f06886806bc55\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, key: str, samples: np.ndarray) -> None:
        """See to it that `codes[key]` is there after the next `flush`."""
        if key not in self.codes and key not in self._waiting and key not in self._encoding:
            cached = read_codes(self._path(key))
            if cached is None or cached.frames != frames_of(samples, self.codec):
                self._waiting[key] = samples
                if sum(map(len, self._waiting.values())) >= WINDOW_S * recordings.SAMPLE_RATE_HZ:
                    self._hand_over()
                return
            self.codes[key] = cached
        self.shown.add(len(samples) / recordings.SAMPLE_RATE_HZ)

    def flush(self) -> None:
        """Encode what is waiting, and wait until all is done."""
        self._hand_over()
        self._join()

    def _hand_over(self) -> None:
        self._join()
        self._encoding, self._waiting = self._waiting, {}
        self._running = self._pool.submit(self._encode, self._encoding)

    def _join(self) -> None:
        if self._running is not None:
            self._running.result()
        self._running, self._encoding = None, {}

    def _encode(self, clips: Mapping[str, np.ndarray]) -> None:
        """In pieces of BATCH_S, and keep each piece."""
        lengths = {key: len(samples) for key, samples in clips.items()}
        for batch in batches(lengths, int(BATCH_S * recordings.SAMPLE_RATE_HZ)):
            if self._stopped:
                return
            for key, codes in zip(batch, self.codec.encode([clips[key] for key in batch]), strict=True):
                assert codes.frames == frames_of(clips[key], self.codec), "the length check relies on it"
                small = Codes(*(np.asarray(layer).astype(np.int16) for layer in codes))
                with recordings.atomic_path(self._path(key), overwrite=True) as partial:
                    np.savez(partial, **small._asdict())
                self.codes[key] = small
                self.shown.add(lengths[key] / recordings.SAMPLE_RATE_HZ)
            _give_back()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.npz"


def _give_back() -> None:
    """Freed memory to the system: clips of fifty lengths left 1.3 GB of holes in the heap of glibc."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such function
            ctypes.CDLL(None).malloc_trim(0)


def frames_of(samples: np.ndarray, codec: Any) -> int:
    """How many frames a clip, [N] at 24 kHz, is encoded into."""
    return math.ceil(len(samples) / codec.samples_per_frame)


def read_codes(path: Path) -> Codes | None:
    """Cached codes, or None where there are none or the file is damaged (zip files carry a checksum)."""
    try:
        with np.load(path, allow_pickle=False) as layers:
            codes = Codes(*(layers[name] for name in Codes._fields))
        ORPHEUS.flatten(codes)  # for its checks of types, lengths and ranges
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile):
        return None
    return codes


def batches(lengths: Mapping[str, int], most: int) -> Iterator[list[str]]:
    """Keys in groups whose lengths add up to `most` at most (or of one key), the shortest first."""
    batch: list[str] = []
    total = 0
    for key in sorted(lengths, key=lambda k: lengths[k]):
        if batch and total + lengths[key] > most:
            yield batch
            batch, total = [], 0
        batch.append(key)
        total += lengths[key]
    if batch:
        yield batch
