"""Any sound file to samples at its own rate: whole, or a reason why not.

libsndfile decodes what it knows, ffmpeg's libraries (PyAV) the rest: m4a, AAC, MP4, WebM. Both quietly give what is
there when a file is cut, so what the container promises is compared with what came. Nothing is decoded beyond `max_s`.
"""

from __future__ import annotations

import importlib
import io
import struct
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, cast

import numpy as np

from orpheus.errors import MissingPackage, UserError

PLAUSIBLE_RATE_HZ = range(4000, 400_001)  # outside it the header is damaged; 1 Hz would resample to gigabytes
BLOCK = 1 << 16  # samples decoded at a time
HEAD, TAIL = 1 << 12, 1 << 17  # bytes looked at; an Ogg page has 65,307 at most
STREAMED = 0x7FFF0000  # sizes from here on mean "until the end": ffmpeg 0xFFFFFFFF, arecord and sox about 0x7FFFFFFF
MOST_CHUNKS = 5000  # looked at: two gigabytes of zeros would be as many empty chunks
LEAST_STREAMED = 16  # bytes after a data size of 0 that are taken for sound
SHORT_S = 0.1  # what a duration in an MP4 or WebM file may be off by: padding of a few codec frames

Reason = Literal["missing", "unreadable", "empty", "truncated", "not finite", "wrong scale", "opposite phase",
                 "too short", "too long", "silent"]  # fmt: skip


Each = Callable[[np.ndarray, int], np.ndarray]


class AudioProblem(UserError):
    """A recording that can't be used. `reason` is one of a fixed set of short words, for reports that count them."""

    def __init__(self, message: str, reason: Reason = "unreadable") -> None:
        super().__init__(message)
        self.reason: Reason = reason


def decode(file: BinaryIO, label: str, max_s: float | None = None, each: Each | None = None) -> tuple[np.ndarray, int]:
    """The samples float32 [N, C] of an open, seekable file, and their rate in Hz.

    `each(block, rate_hz)` is given every block [n, C] as it comes, and what it returns is kept in its place.
    Raises AudioProblem: `empty`, `truncated`, `too long` (more than `max_s` seconds), `unreadable`.
    """
    size = file.seek(0, io.SEEK_END)
    if not size:
        raise AudioProblem(f"{label} is an empty file (0 bytes)", "empty")
    file.seek(0)
    head = file.read(HEAD)
    file.seek(max(size - TAIL, 0))
    tail = file.read()
    file.seek(0)
    _refuse_text(head, label)
    if cut := _cut(head, tail, size, file):
        raise AudioProblem(f"{label} is truncated: {cut}. Copy or download it again", "truncated")
    file.seek(0)
    soundfile = package("soundfile", "reading and writing audio")
    try:
        with soundfile.SoundFile(_openable(file, head, size)) as sound:
            return _checked(sound, label, max_s, each)
    except (soundfile.SoundFileError, ValueError) as error:
        file.seek(0)
        return _decode_with_av(file, label, max_s, getattr(error, "error_string", str(error)).rstrip("."), head, each)


def _checked(sound: Any, label: str, max_s: float | None, each: Each | None) -> tuple[np.ndarray, int]:
    rate_hz, promised = sound.samplerate, sound.frames
    _refuse_rate(rate_hz, label)
    known = promised < 1 << 40  # FLAC and MP3 of unknown length promise 2^63 - 1
    if known and max_s is not None and promised > max_s * rate_hz:
        raise _too_long(label, f"{promised / rate_hz:.1f} s", max_s)
    samples, count = _joined(_blocks(sound), sound.channels, rate_hz, label, max_s, each)
    if known and count < promised:
        raise _truncated(label, count / rate_hz, promised / rate_hz)
    return samples, rate_hz


def _blocks(sound: Any) -> Iterator[np.ndarray]:
    # Not SoundFile.blocks: after a short read it gives its whole buffer, with what was in that memory before.
    while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
        yield block
        if len(block) < BLOCK:
            return


def _joined(blocks: Iterator[np.ndarray], channels: int, rate_hz: int, label: str, max_s: float | None,
            each: Each | None) -> tuple[np.ndarray, int]:  # fmt: skip
    """The blocks in one, and how many samples came."""
    parts, count = [np.zeros((0, channels), np.float32)] if each is None else [], 0
    for block in blocks:
        parts.append(each(block, rate_hz) if each else block)
        count += len(block)
        if max_s is not None and count > max_s * rate_hz:
            raise _too_long(label, f"more than {max_s:.1f} s", max_s)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32), count


def _decode_with_av(file: BinaryIO, label: str, max_s: float | None, why: str, head: bytes,
                    each: Each | None) -> tuple[np.ndarray, int]:  # fmt: skip
    av = package("av", "reading formats that libsndfile does not know")
    try:
        with av.open(file, metadata_errors="replace") as container:
            if not container.streams.audio:
                raise AudioProblem(f"{label} holds no sound: it is {container.format.long_name}")
            stream = container.streams.audio[0]
            rate_hz, channels = stream.rate, stream.channels
            _refuse_rate(rate_hz, label)
            promised_s = _promised_s(stream, container, head)
            if promised_s and max_s is not None and promised_s > max_s + SHORT_S:
                raise _too_long(label, f"{promised_s:.1f} s", max_s)
            samples, count = _joined(_frames(av, container, rate_hz), channels, rate_hz, label, max_s, each)
    except av.FFmpegError as error:
        reason: Reason = "truncated" if head[4:8] == b"ftyp" or head[:4] == b"fLaC" else "unreadable"
        raise AudioProblem(
            f"{label} is {'truncated or damaged' if reason == 'truncated' else 'not audio that can be read here'} "
            f"({why}; {error.strerror}): use WAV, FLAC, MP3, Ogg, M4A or WebM", reason,
        ) from error  # fmt: skip
    if promised_s and count / rate_hz < promised_s - SHORT_S:
        raise _truncated(label, count / rate_hz, promised_s)
    return samples, rate_hz


def _frames(av: Any, container: Any, rate_hz: int) -> Iterator[np.ndarray]:
    """Each frame as float32 [n, C]; a change of rate or format within the file is undone by the resampler."""
    resampler = av.AudioResampler(format="fltp", rate=rate_hz)
    for frame in container.decode(audio=0):
        for part in resampler.resample(frame):
            yield part.to_ndarray().T


def _promised_s(stream: Any, container: Any, head: bytes) -> float:
    """The length that the file itself tells, in seconds; 0 where ffmpeg only guesses."""
    if head[:4] == b"fLaC":
        return (int.from_bytes(head[18:26], "big") & 0xFFFFFFFFF) / stream.rate  # RFC 9639, 8.2: 36 bits of samples
    if head[4:8] == b"ftyp" and stream.duration:
        return float(stream.duration * stream.time_base)
    return container.duration / 1e6 if head[:4] == b"\x1aE\xdf\xa3" and container.duration else 0.0


def _refuse_rate(rate_hz: int, label: str) -> None:
    if rate_hz not in PLAUSIBLE_RATE_HZ:
        raise AudioProblem(
            f"{label} says its sample rate is {rate_hz} Hz, expected "
            f"{PLAUSIBLE_RATE_HZ[0]}..{PLAUSIBLE_RATE_HZ[-1]}: its header is damaged"
        )


def _too_long(label: str, lasts: str, max_s: float) -> AudioProblem:
    return AudioProblem(
        f"{label} lasts {lasts}, more than the {max_s:.1f} s that fit: split it, or raise max_seq_length", "too long"
    )


def _truncated(label: str, came_s: float, promised_s: float) -> AudioProblem:
    return AudioProblem(
        f"{label} is truncated: its header promises {promised_s:.2f} s and {came_s:.2f} s came. "
        "Copy or download it again", "truncated",
    )  # fmt: skip


def _refuse_text(head: bytes, label: str) -> None:
    """What downloads leave in place of a recording, by its first bytes."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    known = {
        b"version https://git-lfs": "a Git LFS pointer, not the recording: run `git lfs pull` in its repository",
        b"<!doctype html": "an HTML page: the download was answered by a web page",
        b"<html": "an HTML page: the download was answered by a web page",
        b"<?xml": "an XML document: the download was answered by an error",
        b"{": "JSON text: the download was answered by an error",
        b"[": "JSON text: the download was answered by an error",
    }
    for sign, what in known.items():
        if start.startswith(sign):
            raise AudioProblem(f"{label} is {what}")
    if not head.strip(b"\0"):
        raise AudioProblem(f"{label} begins with {len(head)} zero bytes: a download or copy that was not finished")


# ---- promises of the containers ----


def _cut(head: bytes, tail: bytes, size: int, file: BinaryIO) -> str:
    """What shows that the file ends too early, or ''."""
    kind = head[:4]
    if kind in (b"RIFF", b"RF64", b"BW64", b"RIFX"):
        return _cut_chunks(file, size, ">" if kind == b"RIFX" else "<", b"data")
    if kind == b"FORM":
        return _cut_chunks(file, size, ">", b"SSND")
    if kind == b"caff":
        return _cut_caf(file, size)
    if kind == b"riff" and head[24:28] == b"wave":
        return _cut_w64(file, size)
    if kind == b".snd":  # Sun/NeXT: offset and size of the data, all ones if unknown
        begin, length = struct.unpack(">II", head[4:12].ljust(8, b"\0"))
        return _missing(begin, length, size)
    if kind == b"OggS":
        return _cut_ogg(tail)
    return _cut_mpeg(head, tail, size, file)


def _missing(begin: int, length: int, size: int) -> str:
    lacking = begin + length - size
    return f"{lacking} of {length} bytes of sound are missing" if lacking > 0 and length < STREAMED else ""


def _chunks(file: BinaryIO, size: int, order: str, position: int = 12) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and length of RIFF and IFF chunks: 4 and 4 bytes before each, padded to an even length."""
    for _ in range(MOST_CHUNKS):
        file.seek(position)
        name, length = struct.unpack(f"{order}4sI", file.read(8).ljust(8, b"\0"))
        if position + 8 > size or not (name.isascii() and name.decode("ascii").isprintable()):
            return  # the end, or no chunk
        yield name, position + 8, length
        position += 8 + length + length % 2


def _cut_chunks(file: BinaryIO, size: int, order: str, wanted: bytes) -> str:
    long = 0
    for name, begin, length in _chunks(file, size, order):
        if name == b"ds64":  # EBU Tech 3306: the sizes of RF64, where 32 bits hold 0xFFFFFFFF
            long = struct.unpack("<Q", file.read(16)[8:].ljust(8, b"\0"))[0]
        if name == wanted:
            whole = long if length == 0xFFFFFFFF and 0 < long < 1 << 62 else 0
            lacking = begin + whole - size
            if whole:
                return f"{lacking} of {whole} bytes of sound are missing" if lacking > 0 else ""
            return _missing(begin, length, size)
    return ""


def _cut_caf(file: BinaryIO, size: int) -> str:
    """Apple's Core Audio Format: after 8 bytes, chunks of an id and a size of 64 bits (-1: until the end)."""
    position = 8
    for _ in range(MOST_CHUNKS):
        file.seek(position)
        if position + 12 > size:
            break
        name, length = struct.unpack(">4sq", file.read(12))
        if length < 0 or position + 12 + length > size:
            lacking = position + 12 + length - size
            return (
                f"{lacking} of {length} bytes of its part '{name.decode('latin-1')}' are missing" if lacking > 0 else ""
            )
        position += 12 + length
    return ""


def _cut_w64(file: BinaryIO, size: int) -> str:
    """Sony Wave64: chunks of a GUID and a size of 64 bits, which counts both, padded to 8 bytes."""
    position = 40
    for _ in range(MOST_CHUNKS):
        file.seek(position)
        if position + 24 > size:
            break
        name, length = struct.unpack("<16sQ", file.read(24))
        if name[:4] == b"data":
            lacking = position + length - size
            return f"{lacking} of {length} bytes of sound are missing" if lacking > 0 and length < 1 << 62 else ""
        position += max(24, -(-length // 8) * 8)
    return ""


def _cut_ogg(tail: bytes) -> str:
    """RFC 3533: pages with a table of their lengths; the last one of a stream is marked (bit 4)."""
    last = tail.rfind(b"OggS")
    if last < 0 or len(tail) < last + 27:
        return "its last page is not complete"
    table = tail[last + 27 : last + 27 + tail[last + 26]]
    if len(table) < tail[last + 26] or last + 27 + len(table) + sum(table) > len(tail):
        return "its last page is not complete"
    return "" if tail[last + 5] & 4 else "its last page is not marked as the end"


_RATES_KBPS = {3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG 1, layer III
               2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}  # MPEG 2 and 2.5  # fmt: skip
_RATES_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def _frame_bytes(header: bytes) -> int:
    """The length of an MP3 (ISO 11172-3, 2.4.1.3) or ADTS frame that begins with these 6 bytes; 0 for anything else."""
    if len(header) < 6 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return 0
    if header[1] & 0xF6 == 0xF0:  # ADTS: 13 bits in the middle
        return (header[3] & 3) << 11 | header[4] << 3 | header[5] >> 5
    version, rate, hz = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if header[1] & 6 != 2 or version == 1 or rate in (0, 15) or hz == 3:
        return 0
    factor = 144_000 if version == 3 else 72_000
    return factor * _RATES_KBPS[3 if version == 3 else 2][rate] // _RATES_HZ[version][hz] + (header[2] >> 1 & 1)


def _cut_mpeg(head: bytes, tail: bytes, size: int, file: BinaryIO) -> str:
    """MP3 and ADTS have no length of their own: the Xing or Info frame's byte count, else a whole last frame."""
    begin = 0
    if head[:3] == b"ID3" and len(head) > 10:
        begin = 10 + int("".join(f"{byte:08b}"[1:] for byte in head[6:10]), 2)
    file.seek(begin)
    first = file.read(256)
    if not _frame_bytes(first[:6]):
        return ""
    sign = next((at for name in (b"Xing", b"Info") if (at := first.find(name)) > 0), -1)
    if sign > 0 and (flags := int.from_bytes(first[sign + 4 : sign + 8], "big")) & 2:
        at = sign + 8 + 4 * (flags & 1)
        return _missing(begin, int.from_bytes(first[at : at + 4], "big"), size)
    return _cut_last_frame(tail, begin, size)


def _cut_last_frame(tail: bytes, begin: int, size: int) -> str:
    """Frame after frame through the tail, from the first one that three others follow."""
    for start in range(max(0, begin - (size - len(tail))), len(tail)):
        position, frames = start, 0
        while length := _frame_bytes(tail[position : position + 6]):
            position, frames = position + length, frames + 1
        if frames > 3:
            lacking = position - len(tail)
            return f"{lacking} bytes of its last frame are missing" if lacking > 0 else ""
    return ""


class _WithHead:
    """A file that begins with other bytes of the same number."""

    def __init__(self, file: BinaryIO, head: bytes) -> None:
        self._file, self._head = file, head
        self.seek, self.tell = file.seek, file.tell

    def read(self, count: int) -> bytes:
        begin = self._file.tell()
        data = self._file.read(count)
        return self._head[begin : begin + len(data)] + data[max(0, len(self._head) - begin) :]


def _openable(file: BinaryIO, head: bytes, size: int) -> BinaryIO:
    """The file, or a view of it in which a data size of 0 in a WAV with samples means "until the end"."""
    chunks = _chunks(file, size, "<") if head[:4] == b"RIFF" else iter(())
    begin = next((at for name, at, length in chunks if name == b"data" and not length), size)
    streamed = size - begin >= LEAST_STREAMED and not _ends_in_chunks(file, size, begin)
    file.seek(0)
    if not streamed:
        return file
    whole = bytearray(file.read(begin))
    whole[4:8] = whole[-4:] = b"\xff\xff\xff\xff"
    file.seek(0)
    return cast(BinaryIO, _WithHead(file, bytes(whole)))


def _ends_in_chunks(file: BinaryIO, size: int, begin: int) -> bool:
    """Whether what follows is not sound but other chunks, up to the end."""
    ends = [at + length for _, at, length in _chunks(file, size, "<", begin)]
    return bool(ends) and ends[-1] in (size, size - 1)


def package(name: str, purpose: str) -> Any:
    """An optional package, imported where it is used; MissingPackage names its install command."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackage(name, purpose) from error
