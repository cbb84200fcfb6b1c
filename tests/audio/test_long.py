"""Recordings of hours are read as short ones are, in little memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orpheus.audio.decoding import AudioProblem
from orpheus.audio.long import read_long
from orpheus.audio.recordings import read
from tests.support.codec_fixtures import speech_like

CLIP = speech_like(4.0, seed=1)


def write(path: Path, samples: np.ndarray, rate_hz: int) -> Path:
    soundfile.write(path, samples, rate_hz, subtype=None if path.suffix == ".mp3" else "PCM_16")
    return path


@pytest.mark.parametrize("rate_hz", [8000, 24000, 44100])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
@pytest.mark.parametrize("channels", [[1.0], [1.0, 0.5], [0.0, 1.0]])
def test_it_is_what_a_short_one_is_read_as(rate_hz, suffix, channels, tmp_path):
    file = write(tmp_path / f"a{suffix}", np.outer(CLIP, channels), rate_hz)
    wanted, got = read(file), read_long(file, "a")
    assert len(got) == len(wanted) and np.abs(got - wanted).max() < 1e-5


def test_what_short_ones_are_refused_for(tmp_path):
    with pytest.raises(AudioProblem, match="a: its two channels are in opposite phase"):
        read_long(write(tmp_path / "a.wav", np.outer(CLIP, [1.0, -1.0]), 24000), "a")
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:-5000])
    with pytest.raises(AudioProblem, match="b is truncated"):
        read_long(tmp_path / "b.wav", "b")
    (tmp_path / "c.wav").write_bytes(b"")
    with pytest.raises(AudioProblem, match="c is an empty file"):
        read_long(tmp_path / "c.wav", "c")
    assert len(read_long(write(tmp_path / "d.wav", np.zeros((0, 2)), 44100), "d")) == 0


def test_a_file_through_ffmpeg_s_libraries(tmp_path):
    import av

    with av.open(str(tmp_path / "a.m4a"), "w") as file:
        stream = file.add_stream("aac", rate=44100, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([CLIP, CLIP]).astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 44100
        for part in (frame, None):
            file.mux(stream.encode(part))
    wanted, got = read(tmp_path / "a.m4a"), read_long(tmp_path / "a.m4a", "a")
    assert abs(len(got) - len(wanted)) <= 1 and np.abs(got[: len(wanted)] - wanted[: len(got)]).max() < 1e-4


def test_no_more_is_held_than_the_result_twice(tmp_path):
    file = write(tmp_path / "a.wav", np.tile(np.outer(CLIP, [1.0, 1.0]), (40, 1)), 48000)
    tracemalloc.start()
    try:
        samples = read_long(file, "a")
        assert tracemalloc.get_traced_memory()[1] < 2.5 * samples.nbytes + 8e6
    finally:
        tracemalloc.stop()
