"""One row of a data set -> a clip that is fit to train on, or why not."""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from orpheus.audio import recordings
from orpheus.data.encoding import frames_of
from orpheus.data.sources import Record
from orpheus.data.usual import longest_silence_s
from orpheus.errors import UserError
from orpheus.format.prompt import EMPTY_CELLS, Renderer, check_text, check_voice
from orpheus.format.texts import changes, normalise
from orpheus.format.tokens import FRAME_SLOTS, Codes

if TYPE_CHECKING:
    from orpheus.codec.snac import SnacCodec


@dataclass(frozen=True)
class Clip:
    """An accepted clip. `tokens` is its whole sequence, `loudness_db` its RMS level (0 = full scale)."""

    name: str
    text: str
    voice: str | None
    seconds: float
    tokens: int
    loudness_db: float
    key: str  # SHA-256 of its samples, float32 at 24 kHz
    findings: tuple[str, ...] = ()  # what is not quite right with the recording, as 'clipped: ...'
    silence_s: float = 0.0  # the longest silence in it
    changes: tuple[str, ...] = ()  # what was normalised in its text


class Unfit(Exception):
    """A clip can't be used: why in a word or two, and what was found."""

    def __init__(self, reason: str, detail: object) -> None:
        super().__init__(str(detail))
        self.reason = reason


@dataclass(frozen=True)
class Recording:
    """A clip's samples, float32 [N] at 24 kHz, and what was found out about them."""

    samples: np.ndarray
    findings: tuple[str, ...]
    loudness_db: float
    key: str
    silence_s: float


def read_recording(record: Record, min_seconds: float, max_seconds: float | None = None) -> Recording:
    """Read a recording and check it; raises Unfit. Safe in any thread."""
    try:
        samples, findings = record.read(max_seconds)
        findings += recordings.check(samples, min_s=min_seconds, name=record.name)
    except recordings.AudioProblem as problem:
        raise Unfit("unreadable" if problem.reason == "missing" else problem.reason, problem) from problem
    except UserError as error:
        raise Unfit("unreadable", error) from error
    loudness_db = 10 * math.log10(float(np.mean(np.square(samples, dtype=np.float64))))
    key = hashlib.sha256(samples.astype("<f4").tobytes()).hexdigest()
    return Recording(samples, tuple(map(str, findings)), loudness_db, key, longest_silence_s(samples, loudness_db))


def check_record(record: Record, codec: SnacCodec, renderer: Renderer, min_seconds: float, max_seq_length: float,
                 recording: Callable[[], Recording] | None = None) -> tuple[Clip, np.ndarray]:  # fmt: skip
    """The clip and its samples, float32 [N] at 24 kHz; raises Unfit.

    `recording` gives what `read_recording` found where that ran before; else it is read here.
    """
    text, voice = checked_text(record.text), checked_voice(record.voice)
    try:
        overhead = len(renderer.example(text, Codes.concatenate([]), voice).input_ids)
    except UserError as error:  # a control token written out in the text
        raise Unfit("bad text", error) from error
    read = recording() if recording else read_recording(record, min_seconds)
    seconds = len(read.samples) / recordings.SAMPLE_RATE_HZ
    tokens = overhead + FRAME_SLOTS * frames_of(read.samples, codec)
    if tokens > max_seq_length:
        room_s = (max_seq_length - overhead) // FRAME_SLOTS * codec.samples_per_frame / recordings.SAMPLE_RATE_HZ
        room = f"{max_seq_length} hold {max(room_s, 0):.1f} s with this text"
        raise Unfit("too long", f"{seconds:.1f} s make {tokens} tokens, {room}: split it, or raise max_seq_length")
    clip = Clip(
        record.name,
        text,
        voice,
        seconds,
        tokens,
        read.loudness_db,
        read.key,
        read.findings,
        read.silence_s,
        changes(record.text),
    )
    return clip, read.samples


def _missing(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())  # NaN is pandas' empty cell


def checked_text(cell: Any) -> str:
    """A transcript as it is trained on; raises Unfit."""
    if _missing(cell):
        raise Unfit("no text", "the transcript is missing")
    if isinstance(cell, str) and cell.strip() in EMPTY_CELLS:
        raise Unfit("no text", f"the transcript is {cell.strip()!r}, which programs write where there is none")
    try:
        return check_text(cell)
    except UserError as error:
        reason = "bad text"
        with contextlib.suppress(UserError):
            check_text(re.sub("[<>]", " ", normalise(cell)) if isinstance(cell, str) else None)
            reason = "bad tag"  # nothing else is wrong with it
        raise Unfit(reason, error) from error


def checked_voice(cell: Any) -> str | None:
    """A speaker's name, None for an empty cell; raises Unfit."""
    if _missing(cell):
        return None
    try:
        return check_voice(normalise(str(cell)).strip(), ())
    except UserError as error:
        raise Unfit("bad voice", f"{error}; if the column holds no voices, set --voice-column ''") from error
