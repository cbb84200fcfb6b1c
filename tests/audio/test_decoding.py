"""Every format that was right stays right; what is no recording is told at once, in bounded memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from orpheus.audio.recordings import SAMPLE_RATE_HZ, AudioProblem, read, read_noting


def tone(rate_hz: int = SAMPLE_RATE_HZ, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def encoded(container: str, subtype: str, rate_hz: int = SAMPLE_RATE_HZ, seconds: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(rate_hz, seconds), rate_hz, subtype, format=container)
    return buffer.getvalue()


def likeness(heard: np.ndarray, seconds: float = 1.0) -> float:
    """Correlation with the tone, wherever a coder's delay has put it; 0 for another length."""
    if not -0.01 < len(heard) / SAMPLE_RATE_HZ - seconds < 0.15:
        return 0.0
    middle = heard[SAMPLE_RATE_HZ // 4 : SAMPLE_RATE_HZ * 3 // 4]
    phases = np.exp(2j * np.pi * 220 * np.arange(len(middle)) / SAMPLE_RATE_HZ)
    return float(2 * abs(middle @ phases) / len(middle) / 0.3)  # its level at 220 Hz against what it should be


FORMATS = [("WAV", s) for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW", "IMA_ADPCM",
                                "MS_ADPCM", "GSM610")]  # fmt: skip
FORMATS += [("AIFF", s) for s in ("PCM_S8", "PCM_16", "PCM_24", "FLOAT", "ALAW")]
FORMATS += [("CAF", s) for s in ("PCM_16", "PCM_24", "FLOAT", "ALAC_16")]
FORMATS += [("W64", "PCM_16"), ("RF64", "PCM_16"), ("RF64", "PCM_24"), ("AU", "PCM_16"), ("AU", "ULAW"),
            ("FLAC", "PCM_16"), ("FLAC", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
            ("WAVEX", "PCM_16"), ("NIST", "PCM_16"), ("VOC", "PCM_16")]  # fmt: skip


@pytest.mark.parametrize(("container", "subtype"), FORMATS)
def test_formats(container, subtype, tmp_path):
    data = encoded(container, subtype)
    (tmp_path / "clip.wav").write_bytes(data)  # whatever its name says
    for source in (data, tmp_path / "clip.wav"):
        assert likeness(read(source)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("rate_hz", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 88200, 96000])
@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_rates(container, rate_hz):
    assert likeness(read(encoded(container, "PCM_16", rate_hz))) == pytest.approx(1, abs=0.02)


def with_av(container: str, codec: str, rate_hz: int = 48000, seconds: float = 1.0, **options: str) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", container, options=options) as file:
        stream = file.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(rate_hz, seconds)[None], "fltp", "mono")
        frame.sample_rate = rate_hz
        stream.codec_context.open()
        resampler = av.AudioResampler(stream.format, "mono", rate_hz, frame_size=stream.codec_context.frame_size or 960)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            file.mux(stream.encode(part))
    return buffer.getvalue()


COMPRESSED = [("ipod", "aac"), ("mp4", "aac"), ("mov", "aac"), ("adts", "aac"), ("webm", "libopus"),
              ("matroska", "libopus"), ("ogg", "libopus"), ("mp4", "alac"),
              ("mp3", "libmp3lame")]  # fmt: skip


@pytest.mark.parametrize(("container", "codec"), COMPRESSED)
def test_formats_of_telephones_and_browsers(container, codec):
    data = with_av(container, codec)
    assert likeness(read(data)) == pytest.approx(1, abs=0.06)
    with pytest.raises(AudioProblem) as caught:
        read(data[: len(data) // 2])
    assert caught.value.reason == "truncated"
    with pytest.raises(AudioProblem) as caught:
        read_noting(data, max_s=0.5)
    assert caught.value.reason == "too long"


# ---- sizes that a program never filled in ----

# ffmpeg into a pipe, sox, arecord, what a crash leaves
UNKNOWN = [(0, 0), (36, 0), (0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0), (0x7FFFFFFF, 0x7FFFFFDB),
           (0x80000024, 0x80000000), (0x7FFFF024, 0x7FFFF000), (0, 0xFFFFFFFF)]  # fmt: skip


def with_sizes(riff: int, data: int, subtype: str = "PCM_16", seconds: float = 1.0, before: bytes = b"") -> bytes:
    content = bytearray(encoded("WAV", subtype, seconds=seconds))
    at = content.find(b"data")
    content[4:8], content[at + 4 : at + 8] = struct.pack("<I", riff), struct.pack("<I", data)
    return bytes(content[:at] + before + content[at:])


@pytest.mark.parametrize(("riff", "data"), UNKNOWN)
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "ULAW"])
def test_a_wav_without_its_size_is_read(riff, data, subtype, tmp_path):
    path = tmp_path / "clip.wav"
    path.write_bytes(with_sizes(riff, data, subtype, before=b"JUNK" + struct.pack("<I", 6000) + b"data" * 1500))
    for source in (path, path.read_bytes()):
        assert likeness(read(source)) == pytest.approx(1, abs=0.05)
        with pytest.raises(AudioProblem) as caught:
            read_noting(source, max_s=0.5)
        assert caught.value.reason == "too long"


def test_a_wav_that_is_empty_stays_empty():
    empty = with_sizes(36, 0)[:44]
    notes = b"LIST" + struct.pack("<I", 40) + b"INFOISFT" + struct.pack("<I", 28) + bytes(28)
    for data in (empty, empty + notes, empty + b"\0\0"):
        assert len(read(data)) == 0


# ---- what is no file, and how much memory the rest may take ----


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "socket"])
def test_only_files_are_opened(kind, tmp_path):
    path = tmp_path / "clip.wav"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    begin = time.monotonic()
    with pytest.raises(AudioProblem, match="expected a file"):
        read(path)
    assert time.monotonic() - begin < 1


LIMITED = """
import resource, sys
import numpy, soundfile, soxr, av
from orpheus.audio.recordings import AudioProblem, read_noting
read_noting(sys.argv[2], max_s=30)  # what loads when it is used first
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    read_noting(sys.argv[1], max_s=30)
except AudioProblem as problem:
    print(problem.reason)
"""


def long_silence(path: Path, container: str, minutes: int) -> None:
    zeros = np.zeros(48000, np.int16)  # libsndfile's Vorbis keeps a block on the stack: a minute is too much for it
    with soundfile.SoundFile(path, "w", 48000, 1, format=container) as file:
        for _ in range(60 * minutes):
            file.write(zeros)


def unsized(path: Path) -> None:
    """A WAV of two gigabytes, on disk some bytes, whose header says 0."""
    path.write_bytes(with_sizes(0, 0))
    os.truncate(path, 2 << 30)


def endless_webm(path: Path) -> None:
    path.write_bytes(with_av("webm", "libopus", seconds=200, live="1"))  # live: no duration in its head


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and limits the address space")
@pytest.mark.parametrize("make", [
    lambda path: long_silence(path, "FLAC", 10), lambda path: long_silence(path, "OGG", 6), unsized, endless_webm,
], ids=["flac", "ogg", "wav", "webm"])  # fmt: skip
def test_long_recordings_are_refused_within_64_mib(make, tmp_path):
    make(tmp_path / "long")
    (tmp_path / "short").write_bytes(with_av("webm", "libopus"))
    ran = subprocess.run([sys.executable, "-c", LIMITED, "long", "short"], cwd=tmp_path, capture_output=True, text=True,
                         timeout=60, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})  # fmt: skip
    assert (ran.stdout.strip(), ran.returncode) == ("too long", 0), ran.stderr
