"""Streaming encoders: the same bytes however the samples are cut, playable, on time, at every speed."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import wave
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orpheus.audio.encoders import FORMS, SPEEDS, Encoder, Stretch, tempos
from orpheus.audio.recordings import SAMPLE_RATE_HZ, pcm16, read
from orpheus.errors import MissingPackage, UserError

CODED = ("mp3", "opus", "aac", "flac")
LATE_S = {"mp3": 0.08, "aac": 0.09}  # what coder and decoder together put before and after the sound
FRAME = 2048


def speechlike(seconds: float, seed: int = 0) -> np.ndarray:
    """Float32 [n]: a tone of 150 Hz with overtones that comes and goes as syllables do, and a little noise."""
    t = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    voiced = sum(np.sin(2 * np.pi * 150 * k * t) / k for k in range(1, 12)) * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * t))
    return (0.2 * voiced + 0.005 * np.random.default_rng(seed).standard_normal(len(t))).astype(np.float32)


def encoded(samples: np.ndarray, format: str, speed: float = 1.0, cut: int = FRAME) -> bytes:
    encoder = Encoder(format, speed)
    return b"".join([*(encoder.push(samples[i : i + cut]) for i in range(0, len(samples), cut)), encoder.finish()])


def decoded(data: bytes, format: str) -> np.ndarray:
    """Float32 [n] at 24 kHz: by libsndfile; by ffmpeg's what that can't read: AAC, and FLAC of unknown length."""
    if format == "pcm":
        return np.frombuffer(data, "<i2") / np.float32(32768)
    if format in ("aac", "flac"):
        import av

        samples = np.concatenate([frame.to_ndarray()[0] for frame in av.open(io.BytesIO(data)).decode(audio=0)])
        return samples if samples.dtype == np.float32 else samples / np.float32(32768)
    return read(data)


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest correlation of a with b, b up to 0.1 s later."""
    scores = []
    for late in range(min(len(b) // 2, round(0.1 * SAMPLE_RATE_HZ))):
        n = min(len(a), len(b) - late)
        scores.append(float(a[:n] @ b[late:][:n] / (np.linalg.norm(a[:n]) * np.linalg.norm(b[late:][:n]))))
    return max(scores)


@pytest.mark.parametrize("speed", [1.0, 0.25, 1.3])
@pytest.mark.parametrize("format", FORMS)
def test_the_bytes_do_not_depend_on_the_chunks(format, speed):
    samples = speechlike(0.7)
    whole = encoded(samples, format, speed, cut=len(samples))
    assert [encoded(samples, format, speed, cut) == whole for cut in (FRAME, 997, 41)] == [True] * 3


@pytest.mark.parametrize("format", FORMS)
def test_a_player_hears_what_was_spoken(format):
    samples = speechlike(1.5)
    heard = decoded(encoded(samples, format), format)
    late = LATE_S.get(format, 0.0)
    assert 0 <= len(heard) - len(samples) <= late * SAMPLE_RATE_HZ
    assert alike(samples, heard) > 0.98
    if not late:  # and nothing is before it
        assert alike(samples[:FRAME], heard[:FRAME]) > 0.9


@pytest.mark.parametrize("format", ["pcm", "wav", "flac"])
def test_lossless_formats_lose_nothing(format):
    samples = speechlike(0.5)
    assert (decoded(encoded(samples, format), format) * 32768).astype("<i2").tobytes() == pcm16(samples)


@pytest.mark.parametrize("speed", [0.25, 0.3, 0.5, 0.75, 1.5, 2.0, 4.0])
def test_speed_changes_the_length_and_keeps_the_pitch(speed):
    t = np.arange(2 * SAMPLE_RATE_HZ + 77) / SAMPLE_RATE_HZ
    tone = (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
    heard = decoded(encoded(tone, "pcm", speed), "pcm")
    assert len(heard) == round(len(tone) / speed)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert abs(np.argmax(spectrum) * SAMPLE_RATE_HZ / len(heard) - 440) < 3
    ends = np.sqrt(np.mean(heard[: len(heard) // 8] ** 2)), np.sqrt(np.mean(heard[-len(heard) // 8 :] ** 2))
    assert min(ends) > 0.25  # 0.35 is the tone's: neither end is missing


def test_one_filter_goes_no_slower_than_a_half():
    assert tempos(0.25) == [0.5, 0.5] and tempos(0.3) == [0.5, 0.6] and tempos(0.5) == [0.5] and tempos(4.0) == [4.0]


@pytest.mark.parametrize("count", [0, 1, 100, 1023, 1024, 1025])
@pytest.mark.parametrize("speed", SPEEDS)
def test_little_audio_is_stretched_too(count, speed):
    stretch = Stretch(speed)
    samples = speechlike(0.1)[:count]
    assert len(stretch.push(samples)) + len(stretch.finish()) == round(count / speed)


@pytest.mark.parametrize("format", FORMS)
def test_the_first_bytes_come_with_the_first_frames(format):
    """Two frames of the codec (0.17 s) are enough for every format; a file of the rest would come too late."""
    encoder = Encoder(format)
    samples = speechlike(1.0)
    first = encoder.push(samples[:FRAME]) + encoder.push(samples[FRAME : 2 * FRAME])
    # A player begins before the end is there; `read` would refuse Ogg without its last page.
    assert len(soundfile.read(io.BytesIO(first))[0] if format == "opus" else decoded(first, format)) > 0


@pytest.mark.parametrize("format", CODED)
def test_bytes_keep_coming(format):
    encoder = Encoder(format)
    samples = speechlike(2.0)
    sizes = [len(encoder.push(samples[i : i + FRAME])) for i in range(0, len(samples), FRAME)]
    assert all(a + b for a, b in pairwise(sizes))  # FLAC's blocks are longer than a frame: now and then there is none


@pytest.mark.parametrize("format", FORMS)
def test_too_loud_is_clipped_and_silence_stays_silent(format):
    loud = decoded(encoded(np.full(FRAME * 4, 1.7, np.float32), format), format)
    assert 0.8 < loud[FRAME : 2 * FRAME].mean() <= 1.1 or format == "opus"  # Opus takes constant offsets away
    assert np.abs(decoded(encoded(np.zeros(FRAME * 4, np.float32), format), format)).max() < 1e-3


def test_a_streamed_wav_can_be_read_by_python_itself():
    samples = speechlike(0.3)
    with wave.open(io.BytesIO(encoded(samples, "wav"))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (SAMPLE_RATE_HZ, 1, 2)
        assert file.readframes(10**6) == pcm16(samples)


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_a_whole_file_tells_its_length(speed):
    samples = speechlike(0.7)
    for format in FORMS:
        encoder = Encoder(format, speed)
        streamed = encoder.push(samples) + encoder.finish()
        whole = encoder.whole(streamed)
        assert len(whole) == len(streamed) and np.array_equal(decoded(whole, format), decoded(streamed, format))
        if format in ("wav", "flac"):
            assert whole != streamed and soundfile.info(io.BytesIO(whole)).frames == encoder.samples
            assert np.array_equal(soundfile.read(io.BytesIO(whole), dtype="float32")[0], decoded(streamed, format))
        else:
            assert whole == streamed


NOTE = "Synthetic speech. Voice: 유나, " * 8


@pytest.mark.parametrize("format", [f for f in FORMS if f != "pcm"])
def test_the_note_stands_before_the_sound(format):
    import av

    samples = speechlike(0.5)
    encoder, plain = Encoder(format, comment=NOTE), Encoder(format)
    first = encoder.push(samples[:FRAME]) + encoder.push(samples[FRAME : 2 * FRAME])
    with av.open(io.BytesIO(first)) as file:
        assert {**file.metadata, **file.streams[0].metadata}["comment"] == NOTE
    data = first + encoder.push(samples[2 * FRAME :]) + encoder.finish()
    assert np.allclose(decoded(data, format), decoded(plain.push(samples) + plain.finish(), format), atol=1e-6)
    whole = encoder.whole(data)
    assert len(whole) == len(data) and np.allclose(decoded(whole, format), decoded(data, format), atol=1e-6)


@pytest.mark.parametrize("format", ["mp3", "aac"])
def test_the_note_does_not_come_before_there_is_sound(format):
    """A server's first byte says that there is audio."""
    encoder = Encoder(format, comment=NOTE)
    assert encoder.push(np.zeros(10, np.float32)) == b""
    assert encoder.push(speechlike(0.3)).startswith(b"ID3")


def test_pcm_has_no_place_for_a_note():
    samples = speechlike(0.2)
    encoder = Encoder("pcm", comment=NOTE)
    assert encoder.push(samples) + encoder.finish() == pcm16(samples)


def test_no_audio_gives_no_sound_and_no_error():
    for format in FORMS:
        data = Encoder(format).finish()
        assert len(data) < 200, format


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
@pytest.mark.parametrize("format", CODED)
def test_what_is_given_up_holds_no_memory(format):
    """Clients hang up: the memory of ffmpeg's objects must not wait for the garbage collector."""
    samples = speechlike(0.2)

    def give_up(times: int) -> int:
        for _ in range(times):
            encoder = Encoder(format)
            encoder.push(samples)
            encoder.close()
            encoder.close()
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    gc.disable()
    try:
        before = give_up(20)
        assert give_up(60) - before < 10e6  # FLAC: 60 MB without `close`
    finally:
        gc.enable()


@pytest.mark.parametrize("speed", [0.24, 4.01, float("nan"), float("inf"), -1.0])
def test_speeds_out_of_range(speed):
    with pytest.raises(UserError, match=r"expected 0\.25\.\.4\.0"):
        Encoder("wav", speed)


def test_an_unknown_format():
    with pytest.raises(UserError, match="as 'ogg': expected one of mp3, opus, aac, flac, wav, pcm"):
        Encoder("ogg")


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match="pip install av"):
        Encoder("mp3")
    with pytest.raises(MissingPackage, match="faster or slower"):
        Encoder("pcm", 2.0)
    assert Encoder("wav").push(np.zeros(1, np.float32))


def test_importing_loads_no_codec():
    code = "import sys, orpheus.audio.encoders; sys.exit('av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
