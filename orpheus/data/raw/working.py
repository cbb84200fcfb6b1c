"""The two long steps, several recordings at a time: hearing them, and cutting their clips. Both can be interrupted."""

from __future__ import annotations

import hashlib
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from orpheus.audio import recordings
from orpheus.audio.long import read_long
from orpheus.audio.recordings import SAMPLE_RATE_HZ, AudioProblem
from orpheus.data.encoding import cores
from orpheus.data.raw.cutting import PAD_S, levelled, obstacles, padded
from orpheus.data.raw.inputs import Input, content_key
from orpheus.data.raw.listening import VERSION, Heard, listen, recall
from orpheus.data.raw.options import RawOptions
from orpheus.data.raw.state import Made, State
from orpheus.data.raw.table import DROP, Row
from orpheus.data.sources import LOG_EVERY_S
from orpheus.hearing.whisper import Whisper

HELD_BACK_DB = 1.0  # a clip that lacks more than this is told of
SHORTEST_S = 0.1  # a row edited to less is a slip
BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} {unit}, {elapsed}<{remaining}"
LINE = "{desc}: {n:.0f} of {total:.0f} {unit}, {elapsed}\n"

Item = TypeVar("Item")


@dataclass
class Work:
    """One recording on its way: its file's key, and what was heard in it, or the problem it has."""

    recording: Input
    key: str = ""
    heard: Heard | None = None
    problem: str = ""
    rows: list[Row] = field(default_factory=list)


class Ear:
    """Whisper, loaded when something is to be heard for the first time."""

    def __init__(self, model: str, language: str, callers: int) -> None:
        self.model, self._language, self._callers = model, language, callers
        self._lock = threading.Lock()
        self._whisper: Whisper | None = None

    def listen(self, samples: np.ndarray) -> Any:
        """As `Whisper.listen`."""
        return self.whisper().listen(samples)

    def describe(self, samples: np.ndarray) -> list[str]:
        """As `Whisper.describe`."""
        return self.whisper().describe(samples)

    def whisper(self) -> Whisper:
        """The recogniser. MissingPackage, and UserError for a model that can't be had."""
        with self._lock:
            if self._whisper is None:
                self._whisper = Whisper(self.model, self._language, self._callers)
            return self._whisper


def workers(options: RawOptions, count: int) -> int:
    """How many of `count` recordings are worked on at a time."""
    return max(1, min(options.workers or cores(), count))


def hear_all(works: Sequence[Work], state: State, ear: Ear, options: RawOptions) -> None:
    """Fill in what is heard in each recording, or what is wrong with it. What was heard before is recalled."""
    with Bar("hearing", "s of speech") as bar:

        def hear(work: Work, going: Callable[[], bool]) -> None:
            work.key = content_key(work.recording.path)
            file, key = state.heard_file(work.recording.stem), f"{VERSION} {work.key} {ear.model} {options.language}"
            work.heard = recall(file, key)
            if work.heard is None:
                try:
                    samples = read(work.recording)
                except AudioProblem as problem:
                    work.problem = f"{problem.reason}: {problem}"
                    return
                work.heard = listen(samples, file, key, ear, going, bar.heard())

        _each(works, hear, workers(options, len(works)))


def read(recording: Input) -> np.ndarray:
    """A recording's samples, float32 [n] at 24 kHz. AudioProblem: they can't be used."""
    samples = read_long(recording.path, recording.name)
    if not np.isfinite(samples).all():
        raise AudioProblem(f"{recording.name} holds samples that are NaN or infinite", "not finite")
    return samples


def cut_all(works: Sequence[Work], state: State, options: RawOptions) -> None:
    """Write the clips of all rows that are kept, those alone that are not there as they should be."""
    every = [row for work in works for row in work.rows if row.kept]
    with Bar("cutting", "clips", len(every)) as bar:

        def cut(work: Work, going: Callable[[], bool]) -> None:
            signed = {row.clip: _signature(row, work, options) for row in work.rows if row.kept}
            current = {clip for clip, signature in signed.items() if _is_current(state, clip, signature)}
            samples = read(work.recording) if len(current) < len(signed) else None
            for row in work.rows:
                if row.kept and row.clip not in current and samples is not None and going():
                    state.clips[row.clip] = _write(row, work, samples, state, options, signed[row.clip])
                bar.add(row.kept)
            if going():
                work.rows = [_noted(row, state.clips.get(row.clip)) for row in work.rows]

        _each(works, cut, workers(options, len(works)))


def _is_current(state: State, clip: str, signature: str) -> bool:
    made = state.clips.get(clip)
    return made is not None and made.signature == signature and (bool(made.problem) or (state.out / clip).is_file())


def _signature(row: Row, work: Work, options: RawOptions) -> str:
    """What a clip's samples depend on."""
    depends = (VERSION, work.key, row.start_s, row.end_s, options.loudness, PAD_S, work.heard and work.heard.spans)
    return hashlib.sha256(repr(depends).encode()).hexdigest()


def _write(row: Row, work: Work, samples: np.ndarray, state: State, options: RawOptions, signature: str) -> Made:
    start, end = (min(round(s * SAMPLE_RATE_HZ), len(samples)) for s in (row.start_s, row.end_s))
    if end - start < SHORTEST_S * SAMPLE_RATE_HZ:
        lasts_s = len(samples) / SAMPLE_RATE_HZ
        return Made(signature, problem=f"less than {SHORTEST_S:g} s of the recording, which lasts {lasts_s:.2f} s")
    assert work.heard is not None
    clip = padded(samples, start, end, obstacles(work.heard, start, end), work.heard.noise_db)
    try:
        findings = [f for f in recordings.check(clip, min_s=SHORTEST_S, name=row.clip) if f.kind != "quiet"]
    except AudioProblem as problem:
        return Made(signature, problem=f"{problem.reason}: {problem}")
    clip, lacking_db = levelled(clip, options.loudness)
    notes = [*map(str, findings)]
    if lacking_db > HELD_BACK_DB:
        notes.append(f"{lacking_db:.0f} dB quieter than the others, because of its peaks")
    recordings.write(state.out / row.clip, clip, overwrite=True)
    return Made(signature, "; ".join(notes))


def _noted(row: Row, made: Made | None) -> Row:
    if made is None or not row.kept:
        return row
    if made.problem:
        return replace(row, decision=DROP, reason=made.problem)
    return replace(row, reason="; ".join(filter(None, [row.reason, made.note]))) if made.note else row


def _each(items: Iterable[Item], step: Callable[[Item, Callable[[], bool]], None], count: int) -> None:
    """Run a step for each item in threads. The first error, and Ctrl-C, stop them all: `going` then says no."""
    stop = threading.Event()
    with ThreadPoolExecutor(count, thread_name_prefix="recording") as pool:
        running = [pool.submit(step, item, lambda: not stop.is_set()) for item in items]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


class Bar:
    """How far it is, on stderr: a bar on a terminal, a line now and then elsewhere. Threads may add at once."""

    def __init__(self, what: str, unit: str, total: float = 0.0) -> None:
        from tqdm import tqdm

        lines: Any = {"mininterval": LOG_EVERY_S, "maxinterval": LOG_EVERY_S}
        form = (
            LINE
            if not sys.stderr.isatty()
            else "{desc}: {percentage:3.0f}%|{bar}| {n:.0f} of {total:.0f} {unit}, {elapsed}<{remaining}"
        )
        self._bar = tqdm(total=total, desc=what, unit=unit, bar_format=form, **({} if sys.stderr.isatty() else lines))
        self._lock = threading.Lock()

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, amount: float) -> None:
        """So much more is done."""
        with self._lock:
            self._bar.update(amount)

    def heard(self) -> Callable[[float, float], None]:
        """For one recording: adds its length to the total when it is first told it."""
        told = threading.Event()

        def done(seconds: float, whole_s: float) -> None:
            if not told.is_set():
                told.set()
                with self._lock:
                    self._bar.total += whole_s
            self.add(seconds)

        return done
