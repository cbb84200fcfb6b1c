"""Samples in, bytes of a sound file out, while the speech is still being made: MP3, Opus, AAC, FLAC, WAV, PCM.

    encoder = Encoder("mp3", speed=1.25)
    for chunk in chunks:                 # float32 [n], 24 kHz, mono
        send(encoder.push(chunk))        # bytes, often none yet
    send(encoder.finish())

The bytes do not depend on how the samples are cut into chunks. ffmpeg's libraries do the work (the package `av` brings
them); WAV and PCM at speed 1 need nothing.
"""

from __future__ import annotations

import importlib
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from orpheus.audio.notes import ID3_FORMATS, id3
from orpheus.audio.recordings import SAMPLE_RATE_HZ, pcm16, wav_header
from orpheus.errors import MissingPackage, UserError

SPEEDS = (0.25, 4.0)
BLOCK = 1024  # samples given to the time-stretch at a time, so that its result does not depend on the chunks
SLOWEST = 0.5  # of one `atempo` filter
OVERLAP_S = 0.2  # of silence after the end: the time-stretch keeps back what it has no overlap for
FLAC_LENGTH = slice(21, 26)  # RFC 9639, 8.2: the last 36 bits are the number of samples, 0 where it is not known
FLAC_LENGTH_MASK = 2**36 - 1


class Form(NamedTuple):
    """How a format is written: its media type, and what ffmpeg's libraries call the container and the codec."""

    media_type: str
    container: str = ""
    codec: str = ""
    bit_rate: int | None = None
    options: tuple[tuple[str, str], ...] = ()  # of the codec
    written: tuple[tuple[str, str], ...] = ()  # of the container


FORMS = {
    # No header that would have to be written at the end (Xing), and no tag in front but our own.
    "mp3": Form("audio/mpeg", "mp3", "libmp3lame", 96_000, (), (("write_xing", "0"), ("id3v2_version", "0"))),
    # Pages of one packet: by default a second of speech is held back until its page is full.
    "opus": Form("audio/ogg; codecs=opus", "ogg", "libopus", 64_000, (("frame_duration", "20"),),
                 (("page_duration", "20000"),)),
    "aac": Form("audio/aac", "adts", "aac", 96_000),
    "flac": Form("audio/flac", "flac", "flac"),
    "wav": Form("audio/wav"),
    "pcm": Form("audio/pcm"),
}  # fmt: skip
"""What can be written, by its name in OpenAI's API. PCM: 16 bit, little-endian, 24 kHz, mono, no header."""


class Encoder:
    """Encodes one utterance, at a speed, its pitch kept. Bytes come as early as the format allows.

    `comment` goes into the metadata before the sound; PCM has no place for it.
    UserError: an unknown format, a speed out of range. MissingPackage: `av` is needed and not installed.
    """

    def __init__(self, format: str, speed: float = 1.0, comment: str = "") -> None:
        if format not in FORMS:
            raise UserError(f"can't encode audio as '{format}': expected one of {', '.join(FORMS)}")
        if not SPEEDS[0] <= speed <= SPEEDS[1]:  # NaN is in no range
            raise UserError(f"speed is {speed}, expected {SPEEDS[0]}..{SPEEDS[1]}")
        self.format, self.media_type = format, FORMS[format].media_type
        self.samples = 0  # written so far, at 24 kHz
        self._stretch = Stretch(speed) if speed != 1 else None
        self._comment = comment
        self._before = id3(comment) if format in ID3_FORMATS else wav_header(None, comment) if format == "wav" else b""
        self._writer: _Raw | _Coded = _Coded(FORMS[format], comment) if FORMS[format].codec else _Raw()

    def push(self, samples: np.ndarray) -> bytes:
        """The next samples, float32 [n] in [-1, 1]; the bytes that are ready, maybe none."""
        return self._write(self._stretch.push(samples) if self._stretch else samples)

    def finish(self) -> bytes:
        """The rest, after the last samples."""
        rest = self._write(self._stretch.finish()) if self._stretch else b""
        return rest + self._begun(self._writer.finish())

    def close(self) -> None:
        """Give up: frees at once what ffmpeg holds, which `finish` does too. A second call does nothing."""
        self._writer.close()

    def whole(self, data: bytes) -> bytes:
        """`data`, all that came out: as a file that tells its length, where a stream could not know it (WAV, FLAC)."""
        if self.format == "wav":
            header = wav_header(self.samples, self._comment)
            return header + data[len(header) :]
        if self.format == "flac":
            at = FLAC_LENGTH
            length = (int.from_bytes(data[at], "big") & ~FLAC_LENGTH_MASK) | (self.samples & FLAC_LENGTH_MASK)
            return data[: at.start] + length.to_bytes(at.stop - at.start, "big") + data[at.stop :]
        return data

    def _write(self, samples: np.ndarray) -> bytes:
        self.samples += len(samples)
        coded = self._writer.push(pcm16(samples))
        return self._begun(coded) if coded else b""

    def _begun(self, coded: bytes) -> bytes:
        """The bytes, the first ones behind what stands before the sound."""
        before, self._before = self._before, b""
        return before + coded


class Stretch:
    """Speech at another speed, its pitch kept (ffmpeg's `atempo`): n samples become round(n / speed)."""

    def __init__(self, speed: float) -> None:
        av = _av("speaking faster or slower")
        self.speed = speed
        self._nothing_yet = (av.error.BlockingIOError, av.error.EOFError)
        self._graph = av.filter.Graph()
        node = self._in = self._graph.add_abuffer(sample_rate=SAMPLE_RATE_HZ, format="flt", layout="mono",
                                                  time_base=Fraction(1, SAMPLE_RATE_HZ))  # fmt: skip
        for tempo in tempos(speed):
            following = self._graph.add("atempo", repr(tempo))
            node.link_to(following)
            node = following
        self._out = self._graph.add("abuffersink")
        node.link_to(self._out)
        self._graph.configure()
        self._waiting = np.zeros(0, np.float32)
        self._taken = self._fed = self._given = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Samples float32 [n] in, those that are ready out, float32 [m], m >= 0."""
        self._taken += len(samples)
        self._waiting = np.concatenate([self._waiting, np.asarray(samples, np.float32)])
        whole = len(self._waiting) // BLOCK * BLOCK
        blocks, self._waiting = self._waiting[:whole], self._waiting[whole:]
        return self._keep([part for start in range(0, whole, BLOCK) for part in self._feed(blocks[start:][:BLOCK])])

    def finish(self) -> np.ndarray:
        """The rest, float32 [m]."""
        wanted = round(self._taken / self.speed)
        silence = np.zeros(int(OVERLAP_S * SAMPLE_RATE_HZ * max(1, self.speed)), np.float32)
        parts = self._feed(np.concatenate([self._waiting, silence]))
        self._in.push(None)
        rest = np.concatenate([*parts, *self._pull(), np.zeros(0, np.float32)])[: max(0, wanted - self._given)]
        assert self._given + len(rest) == wanted, "the silence after the end is too short"
        return self._keep([rest])

    def _feed(self, samples: np.ndarray) -> list[np.ndarray]:
        self._in.push(_frame(samples[None], "flt", self._fed))
        self._fed += len(samples)
        return self._pull()

    def _pull(self) -> list[np.ndarray]:
        ready: list[np.ndarray] = []
        while True:
            try:
                ready.append(self._out.pull().to_ndarray()[0])
            except self._nothing_yet:
                return ready

    def _keep(self, ready: list[np.ndarray]) -> np.ndarray:
        samples = np.concatenate([np.zeros(0, np.float32), *ready])
        self._given += len(samples)
        return samples


def tempos(speed: float) -> list[float]:
    """The speeds of the filters, one after the other, that together are `speed`: one alone goes no slower than 0.5."""
    factors = []
    while speed < SLOWEST:
        factors.append(SLOWEST)
        speed /= SLOWEST
    return [*factors, speed]


class _Raw:
    """16-bit PCM as it is."""

    def push(self, pcm: bytes) -> bytes:
        return pcm

    def finish(self) -> bytes:
        return b""

    def close(self) -> None:
        pass


class _Coded:
    """16-bit PCM through one of ffmpeg's encoders into a container that is never rewound."""

    def __init__(self, form: Form, comment: str) -> None:
        av = _av(f"audio as {form.media_type}")
        self._sink = _Sink()  # not this object: it would not be freed at once, and an encoder holds up to a megabyte
        # bitexact: no version of the library in the file, and no random serial number.
        self._container = av.open(self._sink, "w", format=form.container, options={"fflags": "+bitexact",
                                                                             **dict(form.written)})  # fmt: skip
        self._container.metadata.update({"comment": comment} if comment else {})
        self._stream: Any = self._container.add_stream(form.codec, rate=SAMPLE_RATE_HZ, layout="mono",
                                                       options=dict(form.options))  # fmt: skip
        if form.bit_rate:
            self._stream.bit_rate = form.bit_rate
        codec = self._stream.codec_context
        codec.open()
        self._fit = av.AudioResampler(codec.format, "mono", SAMPLE_RATE_HZ, codec.frame_size or BLOCK)
        self._samples = 0

    def push(self, pcm: bytes) -> bytes:
        if pcm:
            samples = np.frombuffer(pcm, "<i2")[None]
            self._encode(self._fit.resample(_frame(samples, "s16", self._samples)))
            self._samples += samples.shape[1]
        return self._sink.take()

    def finish(self) -> bytes:
        if self._samples:
            self._encode([*self._fit.resample(None), None])
        self.close()
        return self._sink.take()

    def close(self) -> None:
        self._container.close()  # stream and container refer to each other: they would wait for the garbage collector

    def _encode(self, frames: list[Any]) -> None:
        for frame in frames:
            for packet in self._stream.encode(frame):
                self._container.mux(packet)


class _Sink:
    """What a container writes to."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _frame(samples: np.ndarray, format: str, at: int) -> Any:
    """Samples [1, n] as a frame that begins `at` samples after the start."""
    import av

    frame = av.AudioFrame.from_ndarray(samples, format=format, layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE_HZ, at, Fraction(1, SAMPLE_RATE_HZ)
    return frame


def _av(purpose: str) -> Any:
    try:
        importlib.import_module("av.filter")
        return importlib.import_module("av")
    except ImportError as error:
        raise MissingPackage("av", purpose) from error
