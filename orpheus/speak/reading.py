"""Reading a text of any length: piece after piece through the model, joined, and no audio kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from orpheus.audio.joins import Joiner
from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.format.tokens import Codes
from orpheus.model.provenance import spoken_note
from orpheus.speak.speech import Speech
from orpheus.speak.utterance import NoSpeech, best, discarded, is_good, retry_seed


class Before(NamedTuple):
    """What was spoken last: the model can be shown it as context."""

    text: str
    codes: Codes


Closed = Callable[[], bool]
"""Whether nobody listens any more. Asked after every token."""
Spoken = Generator[np.ndarray | Speech | NoSpeech]
"""Chunks float32 [n] as they come, and after the last the Speech, or why there is none."""
Speak = Callable[[str, int, Before | None, Closed], Spoken]
"""Speaks a piece of text with a seed, after what came before it."""


@dataclass(frozen=True)
class Piece:
    """What is known of one spoken piece of a text. `guard`: what the guard found or did, in plain words.

    `duration_s` is the audio that the piece added, its join with the piece before included; `tokens` were drawn for
    it, in all attempts; `carried`: the model was shown the piece before.
    """

    text: str
    seed: int
    finish_reason: str
    finish_detail: str
    tokens: int
    duration_s: float
    guard: tuple[str, ...] = ()
    carried: bool = False


class Reading:
    """A text being read aloud: an iterator of float32 chunks [n > 0], 24 kHz mono, each final.

    `pieces`, `tokens`, `duration_s`, `first_audio_s` (after the first `next`; None before the first chunk) and
    `total_s` (work so far) tell how it goes, during it and after. Memory does not grow with the audio.

    `next` raises NoSpeech if a piece gave not one frame, in `retries` more attempts either; the reading is over then.
    Only where nothing of a piece was handed out yet can it be drawn again; `collected`: nothing is, before it is
    complete. `carry`: whether a piece and what came
    before it fit into the model's context; None never shows it what came before.
    """

    def __init__(
        self,
        texts: Sequence[str],
        voice: str | None,
        seed: int,
        speak: Speak,
        *,
        retries: int = 0,
        collected: bool = False,
        carry: Callable[[str, Before], bool] | None = None,
        silent_db: float,
        provenance: dict[str, Any] | None = None,
    ) -> None:
        self.texts, self.voice, self.seed = texts, voice, seed
        self.provenance = provenance or {}
        self.pieces: list[Piece] = []
        self.samples = 0  # handed out so far
        self.first_audio_s: float | None = None
        self._speak, self._retries, self._collected, self._carry = speak, retries, collected, carry
        self._joiner = Joiner(silent_db)
        self._started: float | None = None
        self._last = 0.0
        self._closed = False
        self._chunks = self._read()

    def __repr__(self) -> str:
        said = " ".join(self.texts)
        said = said if len(said) <= 40 else f"{said[:37]}..."
        return f"Reading({said!r}, {len(self.pieces)} of {len(self.texts)} pieces, {self.duration_s:.2f} s)"

    @property
    def note(self) -> str:
        """What a file of it says of itself in its metadata (`Speech.note`)."""
        return spoken_note(self.voice, self.seed, self.provenance.get("model", {}))

    @property
    def tokens(self) -> int:
        """Tokens drawn for the finished pieces."""
        return sum(piece.tokens for piece in self.pieces)

    @property
    def duration_s(self) -> float:
        """Seconds of audio handed out so far."""
        return self.samples / SAMPLE_RATE_HZ

    @property
    def total_s(self) -> float:
        """Seconds from the first `next` to the newest chunk or to the end."""
        return 0.0 if self._started is None else self._last - self._started

    @property
    def finished(self) -> bool:
        """Whether all of the text was spoken."""
        return len(self.pieces) == len(self.texts)

    def __iter__(self) -> Reading:
        return self

    def __next__(self) -> np.ndarray:
        if self._started is None:
            self._started = self._last = time.perf_counter()
        try:
            chunk = next(self._chunks)
        finally:
            self._last = time.perf_counter()
        if self.first_audio_s is None:
            self.first_audio_s = self.total_s
        self.samples += len(chunk)
        return chunk

    def close(self) -> None:
        """Stop speaking at once; what was handed out stays as it is. From any thread; a second call does nothing."""
        self._closed = True
        with suppress(ValueError):  # it is running, in another thread, which stops at its next token
            self._chunks.close()

    def describe(self) -> dict[str, Any]:
        """How it was made, as plain JSON values."""
        return {
            "text": "\n".join(self.texts),
            "voice": self.voice,
            "seed": self.seed,
            "duration_s": round(self.duration_s, 3),
            "rate_hz": SAMPLE_RATE_HZ,
            "finished": self.finished,
            "tokens": self.tokens,
            "first_audio_s": None if self.first_audio_s is None else round(self.first_audio_s, 4),
            "total_s": round(self.total_s, 4),
            "tokens_per_s": round(self.tokens / self.total_s, 1) if self.total_s else 0.0,
            "realtime_factor": round(self.total_s / self.duration_s, 3) if self.samples else None,
            "pieces": [dataclasses.asdict(piece) for piece in self.pieces],
            **self.provenance,
        }

    def _read(self) -> Generator[np.ndarray]:
        before: Before | None = None
        for i, text in enumerate(self.texts):
            if self._closed:
                return
            self._joiner.begin(last=i + 1 == len(self.texts))
            if before and not (self._carry and self._carry(text, before)):
                before = None
            samples = 0
            ended: _Ended | None = None
            for item in self._attempts(text, self.seed + i, before):
                if isinstance(item, _Ended):
                    ended = item
                    break
                for chunk in self._joiner.push(item):
                    samples += len(chunk)
                    yield chunk
            if ended is None:
                return  # closed
            speech, notes, tokens, carried = ended
            for chunk in self._joiner.end():
                samples += len(chunk)
                yield chunk
            self.pieces.append(Piece(text, speech.seed, speech.finish_reason, speech.finish_detail, tokens,
                                     samples / SAMPLE_RATE_HZ, notes, carried))  # fmt: skip
            # What went wrong would go on: a loop begets a loop.
            good = self._carry is not None and not speech.guard and speech.finish_reason == "end_of_speech"
            before = Before(text, speech.codes) if good else None

    def _attempts(self, text: str, seed: int, before: Before | None) -> Iterator[np.ndarray | _Ended]:
        """The chunks of the first attempt that gives any, or of the best, and how it ended. Nothing at the end: closed.

        A model may take what it is shown for the end of the whole; so silence after a carry is no attempt: the same
        seed draws once more, without.
        """
        notes: tuple[str, ...] = ()
        attempts: list[Speech | NoSpeech] = []
        tokens = 0
        while True:
            silent = True
            with closing(self._speak(text, seed, before, lambda: self._closed)) as spoken:
                for item in spoken:
                    if isinstance(item, np.ndarray):
                        if not self._collected:
                            silent = False
                            yield item
                        continue
                    tokens += item.timings.tokens if isinstance(item, Speech) else item.tokens
                    if before and isinstance(item, NoSpeech):
                        before = None
                        notes += ("no audio with carry: spoken without",)
                        break
                    attempts.append(item)
                    if silent and len(attempts) <= self._retries and not is_good(item):
                        seed = retry_seed(seed)
                        break
                    chosen = best(attempts) if silent else item
                    if isinstance(chosen, NoSpeech):
                        raise chosen
                    if silent:
                        yield chosen.samples
                    notes = (*chosen.guard, *notes, *discarded(chosen, attempts))
                    yield _Ended(chosen, notes, tokens, before is not None)
                    return
                else:
                    return


class _Ended(NamedTuple):
    speech: Speech
    notes: tuple[str, ...]
    tokens: int
    carried: bool
