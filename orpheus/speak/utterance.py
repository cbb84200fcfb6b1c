"""One utterance under way: ids in, chunks of samples out, and at its end the Speech or why there is none."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ
from orpheus.codec.snac import StreamingDecoder
from orpheus.config import SamplingOptions, as_dict
from orpheus.errors import UserError
from orpheus.format.tokens import Codes, FrameStream, Stop, TokenLayout
from orpheus.speak.guard import Watch
from orpheus.speak.speech import Speech, Timings

FADE_S = 0.005  # takes the click off a cut, and off the end, where the codec runs out of codes; too short to hear


class NoSpeech(UserError):
    """The model produced not one whole frame for a text. There is nothing to play, and nothing is made up.

    Of a single text it knows what a `Speech` knows: index, seed, why it ended, and after how many tokens.
    """

    def __init__(self, message: str, *, index: int = 0, seed: int = 0, finish_reason: str = "",
                 finish_detail: str = "", tokens: int = 0) -> None:  # fmt: skip
        super().__init__(message)
        self.index, self.seed, self.tokens = index, seed, tokens
        self.finish_reason, self.finish_detail = finish_reason, finish_detail


class Utterance:
    """One utterance under way: ids in, chunks out."""

    def __init__(self, index: int, text: str, voice: str | None, seed: int, *, prompt: list[int], layout: TokenLayout,
                 decoder: StreamingDecoder, provenance: dict[str, Any], watch: Watch | None) -> None:  # fmt: skip
        self.index, self.text, self.voice, self.seed = index, text, voice, seed
        self.prompt = prompt
        self.frames = FrameStream(layout)
        self.decoder = decoder
        self.provenance = provenance
        self.watch = watch
        self.codes: list[Codes] = []
        self.chunks: list[np.ndarray] = []
        self.tokens = 0
        self.over = False
        self.started = 0.0
        self.first_audio_s: float | None = None

    def push(self, token_id: int) -> bool:
        """Take an id; whether it completed a frame, which is then the last of `codes`."""
        self.tokens += 1
        frame = self.frames.push(token_id)
        if frame is not None:
            self.codes.append(frame)
            if self.watch:
                self.watch.frame(frame)
        return frame is not None

    @property
    def cut(self) -> bool:
        """The guard wants it to end here."""
        return self.watch is not None and self.watch.cut is not None

    def keep(self, chunk: np.ndarray) -> Iterator[np.ndarray]:
        """Note the next samples, float32 [n], and yield them if there are any."""
        if len(chunk):
            if self.first_audio_s is None:
                self.first_audio_s = time.perf_counter() - self.started
            self.chunks.append(chunk)
            if self.watch and not self.over:
                self.watch.sound(chunk)
            yield chunk

    def finish(self, sampling: SamplingOptions) -> Iterator[np.ndarray | Speech | NoSpeech]:
        """The last chunk, and the Speech; the Speech alone where no chunk was given out before. Or NoSpeech."""
        self.over = True  # the guard can't end it any more
        stop = self.frames.finish()
        reason = "max_new_tokens" if stop.kind is Stop.END_OF_IDS else str(stop.kind)
        detail = str(stop)
        if self.watch and self.watch.cut:
            reason, detail = "guard", self.watch.cut
        if not self.codes:
            yield NoSpeech(
                f"the model produced no audio for {self.text[:60]!r}: {stop}. Train longer, try another "
                "seed, or check that base and adapter belong together",
                index=self.index,
                seed=self.seed,
                finish_reason=reason,
                finish_detail=detail,
                tokens=self.tokens,
            )
            return
        last = fade_out(self.decoder.finish())
        given = bool(self.chunks)  # else it is not too late for another attempt
        rest = list(self.keep(last))
        yield from rest if given else []
        total_s = time.perf_counter() - self.started
        samples = np.concatenate(self.chunks)
        yield Speech(
            index=self.index,
            text=self.text,
            voice=self.voice,
            samples=samples,
            codes=Codes.concatenate(self.codes),
            finish_reason=reason,
            finish_detail=detail,
            seed=self.seed,
            guard=self.watch.verdict(len(samples) / SAMPLE_RATE_HZ) if self.watch else (),
            timings=Timings(self.first_audio_s or total_s, total_s, self.tokens),
            provenance={"sampling": as_dict(sampling), **self.provenance},
        )


RETRY_STEP = 1_000_003  # between the seeds of a text's attempts: far more than texts are spoken at once


def retry_seed(seed: int) -> int:
    """The seed of the next attempt."""
    return seed + RETRY_STEP


def is_good(item: Speech | NoSpeech) -> bool:
    """Whether the guard found nothing wrong, and no illegal id cut it short."""
    return isinstance(item, Speech) and not item.guard and item.finish_reason != Stop.OUT_OF_RANGE


def best(attempts: Sequence[Speech | NoSpeech]) -> Speech | NoSpeech:
    """The best of some attempts at a text: a good one, else the first not cut short, else the longest."""

    def worth(item: Speech | NoSpeech) -> tuple[bool, bool, int]:
        if isinstance(item, NoSpeech):
            return False, False, 0
        cut_short = item.finish_reason == Stop.OUT_OF_RANGE
        return is_good(item), not cut_short, len(item.samples) if cut_short else 0

    return max(attempts, key=worth)  # of equals the first


def discarded(chosen: Speech | NoSpeech, attempts: Sequence[Speech | NoSpeech]) -> tuple[str, ...]:
    """What is said of the attempts that were not chosen."""
    return tuple(f"seed {a.seed} discarded: {what_is_wrong(a)}" for a in attempts if a is not chosen)


def what_is_wrong(item: Speech | NoSpeech) -> str:
    """In plain words."""
    return "no audio" if isinstance(item, NoSpeech) else ", ".join(item.guard) or item.finish_detail


def fade_out(samples: np.ndarray) -> np.ndarray:
    """The samples [n] with the last 5 ms, or fewer, falling to zero."""
    count = min(len(samples), int(FADE_S * SAMPLE_RATE_HZ))
    if not count:
        return samples
    faded = samples.copy()
    faded[-count:] *= np.linspace(1.0, 0.0, count, dtype=np.float32)
    return faded
