"""Recordings in, recordings out: read, resample, check, write, stream; and files that are never half-written.

Inside the toolkit audio is float32 [N], mono, 24 kHz, nominally in [-1, 1]: what SNAC takes and gives
(`sampling_rate` in the config of hubertsiuzdak/snac_24khz).
"""

from __future__ import annotations

import io
import secrets
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from orpheus.audio.decoding import AudioProblem, Reason, decode, package
from orpheus.audio.notes import ID3_FORMATS, id3, info_chunk
from orpheus.errors import UserError

SAMPLE_RATE_HZ = 24000

FORMATS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"),
           "ogg": ("OGG", "OPUS"), "opus": ("OGG", "OPUS")}  # fmt: skip
"""What `write` and `to_bytes` can make, by file suffix, in libsndfile's names (MP3 and Opus: libsndfile >= 1.1)."""

FULL_SCALE = 0.99  # resampling rounds off the flat tops of clipped waves, so 1.0 would miss them
CLIPPED_SHARE = 1e-3
SILENT_PEAK = 1e-3  # -60 dBFS: below it there is only the noise of the converter
QUIET_PEAK = 0.05  # -26 dBFS
DC_OFFSET = 0.01
WRONG_SCALE = 1.5  # MP3 and resampling overshoot full scale a little; int16 in a float file is at thousands
OPPOSITE = -0.95  # correlation of two channels
EDGE_SILENCE_S = 1.0
EDGE_SILENCE_DB = -40.0  # against the loudest 20 ms
LEVEL_BLOCK = SAMPLE_RATE_HZ // 50  # samples: levels of speech are taken over 20 ms
NARROW_BANDS_HZ = {4000: "telephone quality", 8000: "a 16 kHz recording, resampled"}
NARROW_BAND_DB = -65.0  # energy above the band against the whole; speech has -30 to -55 there


class Finding(NamedTuple):
    """Something worth knowing about a recording that can still be used."""

    kind: str  # clipped, dc offset, quiet, edge silence, narrow band
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


# ---- reading ----


def read(source: str | Path | bytes | BinaryIO, *, name: str | None = None) -> np.ndarray:
    """Any recording as float32 [N], mono, 24 kHz.

    `source` is a path, a file's content, or an open binary file. libsndfile decodes it (WAV, FLAC, MP3,
    Ogg, AIFF, ...), and ffmpeg's libraries (PyAV) what libsndfile does not know (M4A, AAC, MP4, WebM). Channels with
    sound are averaged, and the clip is resampled from its own rate.

    Raises AudioProblem (a UserError) that names the file: `missing`, `empty` (no bytes), `truncated` (fewer samples
    than promised), `opposite phase`, `unreadable`. A sound file with zero samples is returned as such.
    """
    return read_noting(source, name=name)[0]


def read_noting(
    source: str | Path | bytes | BinaryIO, *, name: str | None = None, max_s: float | None = None
) -> tuple[np.ndarray, list[Finding]]:
    """As `read`, with what was found out about the channels; more than `max_s` seconds raise `too long`, undecoded."""
    samples, rate_hz = read_channels(source, name=name, max_s=max_s)
    mono, findings = mixed(samples, labelled(source, name))
    return within_scale(resample(mono, rate_hz), mono), findings


def within_scale(resampled: np.ndarray, mono: np.ndarray) -> np.ndarray:
    """Heavily clipped waves overshoot when they are resampled: that is no other scale than `mono`'s."""
    return np.clip(resampled, -WRONG_SCALE, WRONG_SCALE) if np.abs(mono).max(initial=0.0) <= 1.0 else resampled


def read_channels(
    source: str | Path | bytes | BinaryIO, *, name: str | None = None, max_s: float | None = None
) -> tuple[np.ndarray, int]:
    """The samples float32 [N, C] as they are stored, and their rate in Hz; errors as in `read_noting`."""
    label = labelled(source, name)
    with opened(source, label) as file:
        return decode(file, label, max_s)


def labelled(source: object, name: str | None = None) -> str:
    """What a recording is called in messages."""
    return name or (str(source) if isinstance(source, str | Path) else "the audio")


def mixed(samples: np.ndarray, label: str) -> tuple[np.ndarray, list[Finding]]:
    """The mean [N] of the channels of [N, C] that hold sound. Raises AudioProblem: `opposite phase`."""
    if not len(samples) or samples.shape[1] == 1:
        return samples.mean(axis=1), []
    living = np.ptp(samples, axis=0) >= 2 * SILENT_PEAK
    if dead := int((~living).sum()) % samples.shape[1]:  # if all are dead, `check` says silent
        found = [Finding("dead channel", f"{dead} of {len(living)} channels hold no sound and are left out")]
        return samples[:, living].mean(axis=1), found
    if samples.shape[1] == 2 and living.all() and opposite(*samples.T):
        raise cancelling(label)
    return samples.mean(axis=1), []


def cancelling(label: str) -> AudioProblem:
    """What to say of a recording whose channels are opposite."""
    said = f"{label}: its two channels are in opposite phase and would cancel out: invert one of them"
    return AudioProblem(said, "opposite phase")


def opposite(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two channels [N] cancel out when they are averaged."""
    left, right = left - left.mean(), right - right.mean()
    return float(left @ right) < OPPOSITE * float(np.linalg.norm(left) * np.linalg.norm(right))


@contextmanager
def opened(source: str | Path | bytes | BinaryIO, label: str) -> Iterator[BinaryIO]:
    """The source as a seekable file. Paths must be regular files: a pipe would hang, a device never ends."""
    if isinstance(source, bytes | bytearray):
        yield io.BytesIO(source)
    elif not isinstance(source, str | Path):
        yield io.BytesIO(source.read())
    else:
        try:
            if not stat.S_ISREG(mode := Path(source).stat().st_mode):
                what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
                raise AudioProblem(f"can't read {label}: it is {what}, expected a file")
            file = open(source, "rb")  # noqa: SIM115
        except (OSError, ValueError) as error:
            reason: Reason = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
            raise AudioProblem(f"can't read {label}: {getattr(error, 'strerror', None) or error}", reason) from error
        with file:
            yield file


def resample(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Samples [N] or [N, C] at `rate_hz` to float32 [M], mono, 24 kHz, M = N * 24000 / rate_hz rounded (soxr, HQ).

    Integer samples are scaled by their type's range, so that full scale is 1. Raises UserError for another
    shape, for [C, N], for a type that is no number and for a rate that is not positive.
    """
    samples = _as_float(samples)
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= 64):  # [C, N]: N is longer
        raise UserError(f"audio has the shape {list(samples.shape)}, expected [N] or [N, C], time first")
    if rate_hz <= 0:
        raise UserError(f"the sample rate is {rate_hz} Hz, expected a positive number")
    mono = samples.mean(axis=1) if samples.ndim == 2 else samples
    if rate_hz == SAMPLE_RATE_HZ or not len(mono):
        return np.ascontiguousarray(mono)
    return package("soxr", "resampling audio").resample(mono, rate_hz, SAMPLE_RATE_HZ, quality="HQ")


def _as_float(samples: np.ndarray) -> np.ndarray:
    if (samples := np.asarray(samples)).dtype.kind == "f":
        return samples.astype(np.float32)
    if samples.dtype.kind not in "iu":
        raise UserError(f"audio has the type {samples.dtype}, expected numbers")
    half = 2.0 ** (8 * samples.itemsize - 1)
    middle = half if samples.dtype.kind == "u" else 0.0  # unsigned audio is silent at the middle of its range
    return ((samples.astype(np.float64) - middle) / half).astype(np.float32)


# ---- checking ----


def check(samples: np.ndarray, *, min_s: float, name: str) -> list[Finding]:
    """Look at a clip, float32 [N] at 24 kHz, before it is trained on.

    Raises AudioProblem that names the clip: `empty`, `not finite`, `wrong scale`,
    `too short` (under `min_s` seconds), `silent`.
    Returns what a user should know about a clip that is fit for use: clipped waves, a DC offset, a low level,
    long silence at the edges (a model learns it), missing high frequencies (recorded at a lower rate).
    """
    if not len(samples):
        raise AudioProblem(f"{name} holds no samples", "empty")
    if bad := len(samples) - int(np.isfinite(samples).sum()):
        raise AudioProblem(f"{name} holds {bad} samples that are NaN or infinite, of {len(samples)}", "not finite")
    length_s = len(samples) / SAMPLE_RATE_HZ
    if length_s < min_s:
        raise AudioProblem(f"{name} lasts {length_s:.2f} s, expected at least {min_s:g} s", "too short")
    if (loudest := float(np.abs(samples).max())) > WRONG_SCALE:
        scale = "16-bit integers" if loudest > 100 else "another full scale"
        raise AudioProblem(
            f"{name} has samples up to {loudest:.4g}, expected -1..1: {scale}? Divide before saving floats",
            "wrong scale",
        )
    offset = float(samples.mean())
    peak = float(np.abs(samples - offset).max())
    if peak < SILENT_PEAK:
        raise AudioProblem(f"{name} is silent: its peak is {_db(peak**2):.0f} dBFS", "silent")

    findings = []
    if (clipped := float((np.abs(samples) >= FULL_SCALE).mean())) > CLIPPED_SHARE:
        findings.append(Finding("clipped", f"{clipped:.1%} of the samples are at full scale; record at a lower level"))
    if abs(offset) > DC_OFFSET:
        findings.append(Finding("dc offset", f"the mean is {offset:+.3f}, expected 0; use a high-pass filter"))
    if peak < QUIET_PEAK:
        findings.append(Finding("quiet", f"the peak is {_db(peak**2):.0f} dBFS; raise the level"))
    before_s, after_s = edge_silence_s(samples - offset)
    if max(before_s, after_s) > EDGE_SILENCE_S:
        findings.append(Finding("edge silence", f"{before_s:.1f} s before and {after_s:.1f} s after the sound; trim"))
    if band_hz := _narrow_band_hz(samples - offset):
        findings.append(Finding("narrow band", f"almost nothing above {band_hz} Hz: {NARROW_BANDS_HZ[band_hz]}?"))
    return findings


def _db(power: float | np.ndarray) -> Any:
    return 10 * np.log10(np.maximum(power, 1e-20))


def _frames(samples: np.ndarray, length: int) -> np.ndarray:
    """The samples in rows [n, length]; the rest, less than a row, is left out."""
    return samples[: len(samples) // length * length].reshape(-1, length)


def edge_silence_s(samples: np.ndarray) -> tuple[float, float]:
    """Seconds of silence before the first and after the last sound, in steps of 20 ms."""
    step_s = 0.02
    level_db = _db((_frames(samples, int(step_s * SAMPLE_RATE_HZ)) ** 2).mean(axis=1))
    sound = level_db > level_db.max(initial=-np.inf) + EDGE_SILENCE_DB
    return (float(sound.argmax() * step_s), float(sound[::-1].argmax() * step_s)) if len(sound) else (0.0, 0.0)


def _narrow_band_hz(samples: np.ndarray) -> int | None:
    """The lowest of the known bands that holds practically all of the energy, or None."""
    length = 1024
    power = (np.abs(np.fft.rfft(_frames(samples, length) * np.hanning(length))) ** 2).sum(axis=0)
    hz = np.fft.rfftfreq(length, 1 / SAMPLE_RATE_HZ)
    # A resampler's filter needs room to fall: look from 10 % above the band.
    quiet_above = (b for b in NARROW_BANDS_HZ if _db(power[hz > 1.1 * b].sum()) < _db(power.sum()) + NARROW_BAND_DB)
    return next(quiet_above, None)


# ---- writing ----


def write(path: str | Path, samples: np.ndarray, *, overwrite: bool = False, comment: str = "") -> Path:
    """Write samples [N] (24 kHz, in [-1, 1]) in the format of the suffix: .wav, .flac (16 bit), .mp3, .ogg, .opus.

    The file appears whole or not at all; missing folders are made. `comment` goes into the file's metadata
    (`orpheus/audio/notes.py`).
    Louder samples are clipped. Raises UserError for an existing file (unless `overwrite`), an unknown suffix,
    no samples, NaN or infinity, and for what the system refuses (no space, no permission).
    """
    path = Path(path)
    data = to_bytes(samples, path.suffix.lstrip(".").lower(), comment=comment)
    with atomic_path(path, overwrite=overwrite) as partial:
        partial.write_bytes(data)
    return path


def to_bytes(samples: np.ndarray, format: str = "wav", *, comment: str = "") -> bytes:
    """The content of a sound file with samples [N] (24 kHz), in one of FORMATS. Comment and errors as in `write`."""
    if format not in FORMATS:
        raise UserError(f"can't write audio as '{format}': expected one of {', '.join(FORMATS)}")
    data = _playable(samples)
    if not len(data):
        raise UserError("there are no samples to write")
    if format == "wav":
        return wav_header(len(data), comment) + pcm16(data)
    container, subtype = FORMATS[format]
    soundfile, buffer = package("soundfile", "reading and writing audio"), io.BytesIO()
    with soundfile.SoundFile(buffer, "w", SAMPLE_RATE_HZ, 1, subtype, format=container) as file:
        if comment and format not in ID3_FORMATS:  # libsndfile's own has 30 letters, at the end
            file.comment = comment
        # 16-bit formats get our integers: libsndfile scales by 32767 and would not give back what it has read.
        file.write(np.frombuffer(pcm16(data), "<i2") if subtype == "PCM_16" else data)
    return (id3(comment) if format in ID3_FORMATS else b"") + buffer.getvalue()


def pcm16(samples: np.ndarray) -> bytes:
    """Samples [N] as 16-bit little-endian PCM, full scale 32768; louder samples are clipped, NaN raises UserError."""
    return np.clip(np.rint(_playable(samples) * 32768), -32768, 32767).astype("<i2").tobytes()


def _playable(samples: np.ndarray) -> np.ndarray:
    """Float32 [N] in [-1, 1]; too loud is clipped, since wrapping around would crack; NaN and other shapes refused."""
    if (samples := _as_float(samples)).ndim != 1:
        raise UserError(f"audio to write has the shape {list(samples.shape)}, expected [N], mono")
    if not np.isfinite(samples).all():
        raise UserError("audio to write holds NaN or infinite samples")
    return np.clip(samples, -1, 1)


def wav_header(samples: int | None, comment: str = "") -> bytes:
    """What stands before 16-bit mono PCM at 24 kHz: 44 bytes, and between them the comment, if there is one.

    None: length unknown, for a stream that can't be rewound.
    """
    # The RIFF field counts everything after itself. Readers take 0xFFFFFFFF as "until the end" (ffmpeg, libsndfile).
    size, info = 0xFFFFFFFF if samples is None else 2 * samples, info_chunk(comment)
    form = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", min(size + 36 + len(info), 0xFFFFFFFF), b"WAVE", b"fmt ", 16, 1, 1,
                       SAMPLE_RATE_HZ, 2 * SAMPLE_RATE_HZ, 2, 16)  # fmt: skip
    return form + info + struct.pack("<4sI", b"data", size)


class WavStream:
    """A WAV file that grows: `with WavStream(path) as wav: wav.write(chunk)`.

    After each `write` the header tells the true length, so the file can be played at any moment, and after
    a crash too. Raises UserError for an existing file (unless `overwrite`) and for what the system refuses.
    A stream that got no samples leaves no file. `comment` as in `write`.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, comment: str = "") -> None:
        self.path = Path(path)
        self.samples = 0
        self._comment = comment
        with _errors_naming(self.path, overwrite):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb" if overwrite else "xb", buffering=0)
            self._file.write(self._header())

    def write(self, samples: np.ndarray) -> None:
        """Append samples [n], n >= 0 (24 kHz, in [-1, 1]); errors as in `write`."""
        data = pcm16(samples)
        with _errors_naming(self.path):
            self._file.seek(len(self._header()) + 2 * self.samples)
            rest = data
            while rest:  # an unbuffered write may be short; the attempt after it says why
                rest = rest[self._file.write(rest) :]
            self.samples += len(data) // 2
            self._file.seek(0)
            self._file.write(self._header())  # data first: the header never promises too much

    def _header(self) -> bytes:
        return wav_header(self.samples, self._comment)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with _errors_naming(self.path):
            self._file.close()
            if not self.samples:
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> WavStream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@contextmanager
def atomic_path(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary path in the same folder, with the same suffix; it takes the name `path` when the block ends well.

    Whatever happens, `path` holds its old content or the new one, and nothing is left beside it. Missing folders
    are made. An OSError in the block becomes a UserError naming `path`; other exceptions pass through.
    """
    path = Path(path)
    # The suffix stays last, because numpy.savez and other writers append it where it is missing.
    partial = path.with_name(f".{secrets.token_hex(6)}.partial{path.suffix}")
    with _errors_naming(path, overwrite):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink()


def refuse_existing(path: Path, overwrite: bool) -> None:
    """UserError for a file that exists, unless it may be overwritten."""
    if not overwrite and path.exists():
        raise UserError(f"{path} exists already: choose another name, or overwrite it explicitly")


@contextmanager
def _errors_naming(path: Path, overwrite: bool = True) -> Iterator[None]:
    try:
        refuse_existing(path, overwrite)
        yield
    except OSError as error:
        raise UserError(f"can't write {path}: {error.strerror or error}") from error
