"""Recordings good and bad: what is read, what is refused with which reason, and that no file is left half-written."""

from __future__ import annotations

import errno
import io
import pickle
import re
import struct
import subprocess
import sys
import wave
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.audio import recordings
from orpheus.audio.recordings import AudioProblem
from orpheus.errors import UserError

RATE = recordings.SAMPLE_RATE_HZ
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")


def tone(hz: float = 440, seconds: float = 0.5, rate_hz: int = RATE, level: float = 0.5) -> np.ndarray:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def speech(seconds: float = 1.0, level: float = 0.1) -> np.ndarray:
    """Something with all frequencies in it."""
    return (level * np.random.default_rng(0).standard_normal(round(seconds * RATE))).astype(np.float32)


def sound_file(samples: np.ndarray, rate_hz: int, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, subtype, format=container)
    return buffer.getvalue()


def loudest_hz(samples: np.ndarray) -> float:
    return float(np.abs(np.fft.rfft(samples)).argmax() * RATE / len(samples))


# ---- reading ----


@pytest.mark.parametrize(
    ("rate_hz", "channels", "subtype", "container"),
    [
        (24000, 1, "PCM_16", "WAV"), (48000, 1, "FLOAT", "WAV"), (8000, 1, "PCM_U8", "WAV"),
        (22050, 2, "PCM_24", "WAV"), (44100, 2, "MPEG_LAYER_III", "MP3"), (16000, 1, "PCM_16", "FLAC"),
        (48000, 2, "OPUS", "OGG"), (44100, 1, "VORBIS", "OGG"), (11025, 6, "PCM_16", "AIFF"),
    ],
)  # fmt: skip
def test_read_gives_mono_float32_at_24_khz(tmp_path, rate_hz, channels, subtype, container):
    file = tmp_path / f"clip.{container.lower()}"
    file.write_bytes(sound_file(np.tile(tone(rate_hz=rate_hz)[:, None], channels), rate_hz, subtype, container))
    samples = recordings.read(file)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert abs(len(samples) - RATE // 2) < 2 * 1152 * RATE / rate_hz  # MP3 comes in frames of 1152 samples
    assert loudest_hz(samples) == pytest.approx(440, abs=5)
    assert np.abs(samples[2000:-3000]).max() == pytest.approx(0.5, abs=0.03)
    assert np.array_equal(recordings.read(file.read_bytes()), samples)
    with file.open("rb") as stream:
        assert np.array_equal(recordings.read(stream), samples)


def test_read_averages_the_channels_that_hold_sound():
    for other, level in [(tone(level=0.4), 0.6), (np.zeros(RATE // 2, np.float32), 0.8)]:
        stereo = np.stack([tone(level=0.8), other], axis=1)
        assert np.allclose(recordings.read(sound_file(stereo, RATE, "FLOAT")), tone(level=level), atol=1e-6)


def test_each_clip_is_resampled_from_its_own_rate():
    """Defect 17: resampling every clip with the first clip's rate plays the second at double speed."""
    clips = [recordings.read(sound_file(tone(rate_hz=rate_hz), rate_hz)) for rate_hz in (48000, 24000, 8000)]
    assert [len(clip) for clip in clips] == [RATE // 2] * 3
    assert [loudest_hz(clip) for clip in clips] == pytest.approx([440] * 3, abs=3)


def test_resampling_removes_what_would_alias():
    samples = recordings.read(sound_file(tone(hz=20000, rate_hz=48000), 48000, "FLOAT"))
    assert np.abs(samples[500:-500]).max() < 1e-4


BROKEN = {
    "text.wav": b"This is not a recording at all.\n" * 20,
    "noise.mp3": bytes(range(256)) * 8,
    "header_only.wav": sound_file(tone(), RATE)[:20],
    "rate_of_1_hz.wav": sound_file(tone(seconds=0.1), 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_audio_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(AudioProblem, match=name) as caught:
        recordings.read(tmp_path / name)
    assert caught.value.reason == "unreadable"


def test_missing_empty_and_folder(tmp_path):
    (tmp_path / "empty.wav").touch()
    for name, reason in [("nowhere.wav", "missing"), ("empty.wav", "empty"), ("", "unreadable")]:
        with pytest.raises(AudioProblem, match=str(tmp_path / name)) as caught:
            recordings.read(tmp_path / name)
        assert caught.value.reason == reason
    with pytest.raises(AudioProblem, match="row 7"):
        recordings.read(b"", name="row 7")


def test_a_wav_without_samples_reads_as_nothing_and_check_says_so():
    samples = recordings.read(sound_file(tone(seconds=0), RATE))
    assert samples.shape == (0,)
    with pytest.raises(AudioProblem) as caught:
        recordings.check(samples, min_s=0, name="clip 3")
    assert caught.value.reason == "empty"


def test_nan_in_a_file_survives_resampling_and_is_found():
    samples = tone(rate_hz=48000)
    samples[5000] = np.nan
    with pytest.raises(AudioProblem, match="NaN"):
        recordings.check(recordings.read(sound_file(samples, 48000, "FLOAT")), min_s=0, name="clip")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 43), st.integers(0, 255), st.integers(44, 4000))
def test_a_damaged_header_gives_an_array_or_one_clear_error(position, value, length):
    data = bytearray(sound_file(tone(seconds=0.1), RATE)[:length])
    data[position] = value
    with suppress(AudioProblem):
        assert recordings.read(bytes(data)).ndim == 1


CONTAINERS = [("WAV", "PCM_16"), ("WAV", "MS_ADPCM"), ("AIFF", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"),
              ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"), ("CAF", "PCM_16"), ("W64", "PCM_16"),
              ("RF64", "PCM_16")]  # fmt: skip


@pytest.mark.parametrize(("container", "subtype"), CONTAINERS)
def test_a_cut_file_is_truncated_and_a_whole_one_is_read(container, subtype):
    data = sound_file(tone(seconds=2), RATE, subtype, container)
    assert len(recordings.read(data)) >= 2 * RATE
    with pytest.raises(AudioProblem) as caught:
        recordings.read(data[: len(data) * 2 // 3])
    assert caught.value.reason == "truncated"


def test_a_scale_of_integers_is_refused():
    with pytest.raises(AudioProblem) as caught:
        recordings.check(tone(level=20000), min_s=0, name="clip")
    assert caught.value.reason == "wrong scale"


def test_opposite_channels_are_refused():
    with pytest.raises(AudioProblem) as caught:
        recordings.read(sound_file(np.stack([tone(), -tone()], axis=1), RATE))
    assert caught.value.reason == "opposite phase"


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1", b"<!DOCTYPE html>", b'{"error": 1}']
)
def test_what_downloads_leave_is_named(content):
    with pytest.raises(AudioProblem, match=r"LFS|HTML|JSON"):
        recordings.read(content)
    with pytest.raises(AudioProblem, match="expected a file"):
        recordings.read("/dev/zero")


# ---- resampling ----


def test_resample_takes_channels_last_and_integers():
    assert recordings.resample(np.array([0, 64, 128, 192], np.uint8), RATE).tolist() == [-1, -0.5, 0, 0.5]
    assert recordings.resample(np.array([-32768, 0, 16384], np.int16), RATE).tolist() == [-1, 0, 0.5]
    assert recordings.resample(np.zeros((100, 2), np.float64), RATE).shape == (100,)
    assert recordings.resample(np.zeros((0, 2), np.float32), 8000).shape == (0,)


@pytest.mark.parametrize(
    ("samples", "rate_hz"),
    [(np.zeros((2, 24000)), RATE), (np.zeros((1, 2, 3)), RATE), (np.zeros(9), 0), (np.array(["a"]), RATE)],
)
def test_resample_refuses(samples, rate_hz):
    with pytest.raises(UserError):
        recordings.resample(samples, rate_hz)


# ---- checking ----


@pytest.mark.parametrize(
    ("reason", "samples"),
    [
        ("empty", speech()[:0]),
        ("not finite", np.append(speech(), np.float32("nan"))),
        ("not finite", np.append(speech(), np.float32("-inf"))),
        ("too short", speech()[:2000]),
        ("silent", np.zeros(RATE, np.float32)),
        ("silent", np.full(RATE, 0.3, np.float32)),  # a constant voltage is no sound
    ],
)
def test_check_refuses_with_a_reason(reason, samples):
    """Defect 17: empty, silent and NaN clips passed through to training."""
    with pytest.raises(AudioProblem, match="clip 3") as caught:
        recordings.check(samples, min_s=0.2, name="clip 3")
    assert caught.value.reason == reason
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason  # worker processes send it home


def quiet_edges() -> np.ndarray:
    return np.concatenate([np.zeros(RATE * 3 // 2, np.float32), speech()])


@pytest.mark.parametrize(
    ("kind", "samples", "says"),
    [
        ("clipped", np.clip(speech(level=0.6), -1, 1), r"\d+\.\d% of the samples"),
        ("dc offset", speech() + np.float32(0.1), r"\+0\.1"),
        ("quiet", speech(level=0.005), "dBFS"),
        ("edge silence", quiet_edges(), "1.5 s before"),
        ("narrow band", recordings.resample(speech()[::3], 8000), "telephone"),
        ("narrow band", recordings.resample(speech()[: RATE * 2 // 3], 16000), "above 8000 Hz"),
    ],
)
def test_check_tells_what_is_wrong(kind, samples, says):
    findings = recordings.check(samples, min_s=0.2, name="clip")
    assert [finding.kind for finding in findings] == [kind]
    assert str(findings[0]).startswith(f"{kind}: ")
    assert re.search(says, findings[0].detail)


def test_check_takes_clips_shorter_than_its_windows():
    recordings.check(speech()[:3], min_s=0, name="clip")


def test_check_has_nothing_to_say_about_a_good_clip():
    assert recordings.check(speech(), min_s=0.2, name="clip") == []


# ---- writing ----


@pytest.mark.parametrize(
    ("suffix", "tolerance"), [(".wav", 2e-5), (".flac", 2e-5), (".mp3", 0.1), (".ogg", 0.1), (".opus", 0.1)]
)
def test_written_files_read_back(tmp_path, suffix, tolerance):
    path = recordings.write(tmp_path / "new" / f"a{suffix}", tone(), comment="seed 7")
    info = soundfile.info(path)
    assert (info.samplerate, info.channels) == (RATE, 1)
    assert np.abs(recordings.read(path)[: len(tone())] - tone())[1000:-1000].max() < tolerance
    with soundfile.SoundFile(path) as file:
        assert file.comment == "seed 7"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
@settings(max_examples=20, deadline=None)
def test_16_bit_samples_survive_reading_and_writing_exactly(values):
    samples = np.array(values, np.int16)
    assert np.array_equal(recordings.read(recordings.to_bytes(samples)), samples / np.float32(32768))
    assert recordings.pcm16(samples / np.float32(32768)) == samples.astype("<i2").tobytes()


def test_too_loud_is_clipped_and_does_not_wrap_around():
    assert np.frombuffer(recordings.pcm16(np.array([1.0, 1.5, -1.5, -1.0, 0])), "<i2").tolist() == [
        32767, 32767, -32768, -32768, 0]  # fmt: skip


@pytest.mark.parametrize("samples", [np.array([0, np.nan]), np.array([np.inf]), np.zeros((9, 2)), np.zeros(0)])
def test_what_can_not_be_played_is_not_written(tmp_path, samples):
    with pytest.raises(UserError):
        recordings.write(tmp_path / "a.wav", samples)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path):
    file = tmp_path / "a.wav"
    file.write_text("precious")
    for attempt in (recordings.write, lambda path, samples: recordings.WavStream(path)):
        with pytest.raises(UserError, match="exists already"):
            attempt(file, tone())
    assert file.read_text() == "precious"
    recordings.write(file, tone(), overwrite=True)
    assert len(recordings.read(file)) == len(tone())


def test_unknown_suffix_names_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"'aac'.*wav, flac, mp3, ogg, opus"):
        recordings.write(tmp_path / "a.aac", tone())


def test_disk_full_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = recordings.write(tmp_path / "a.wav", tone())
    before = file.read_bytes()

    def half(path, data):
        with path.open("wb") as out:
            out.write(data[: len(data) // 2])
        raise NO_SPACE

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(UserError, match=r"a\.wav: No space left on device"):
        recordings.write(file, tone(880), overwrite=True)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes() == before


def test_unwritable_folder_is_one_clear_error(tmp_path):
    (tmp_path / "file").touch()  # a folder below a file can't be made, not even by root
    for write in (lambda path: recordings.write(path, tone()), recordings.WavStream):
        for path in (tmp_path / "file" / "a.wav", tmp_path / "file" / "deeper" / "a.wav"):
            with pytest.raises(UserError, match=r"can't write .*a\.wav"):
                write(path)


def test_atomic_path_serves_other_writers_and_keeps_their_errors(tmp_path):
    file = tmp_path / "codes.npz"
    with recordings.atomic_path(file) as partial:
        np.savez(partial, codes=np.arange(3))
        assert not file.exists()

    def fail(error):
        with recordings.atomic_path(file) as partial:
            partial.write_text("half")
            raise error

    for error in (KeyError("a bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
    assert list(tmp_path.iterdir()) == [file]
    assert np.load(file)["codes"].tolist() == [0, 1, 2]


# ---- the growing WAV ----


@settings(max_examples=20, deadline=None)
@given(chunks=st.lists(st.integers(0, 3000), min_size=1, max_size=5))
def test_a_wav_stream_is_a_valid_file_after_every_chunk(tmp_path_factory, chunks):
    file = tmp_path_factory.mktemp("stream") / "a.wav"
    with recordings.WavStream(file) as wav:
        for i in range(len(chunks)):
            wav.write(tone(seconds=1)[: chunks[i]])
            with wave.open(str(file)) as reader:
                assert (reader.getframerate(), reader.getnchannels(), reader.getsampwidth()) == (RATE, 1, 2)
                assert reader.getnframes() == wav.samples == sum(chunks[: i + 1])
    assert file.exists() == (sum(chunks) > 0)
    if sum(chunks):
        assert file.read_bytes()[44:] == b"".join(recordings.pcm16(tone(seconds=1)[:n]) for n in chunks)


def test_a_wav_stream_is_playable_after_a_crash(tmp_path):
    program = (
        "import os, sys, numpy as np; from orpheus.audio.recordings import WavStream\n"
        "wav = WavStream(sys.argv[1]); wav.write(np.zeros(5000, np.float32)); os._exit(9)"
    )
    root = Path(recordings.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program, tmp_path / "a.wav"], cwd=root, check=False).returncode == 9
    assert len(recordings.read(tmp_path / "a.wav")) == 5000


def test_disk_full_in_a_wav_stream_keeps_what_was_written(tmp_path, monkeypatch):
    with recordings.WavStream(tmp_path / "a.wav") as wav:
        wav.write(tone())
        monkeypatch.setattr(wav, "_file", FullDisk(wav._file))
        with pytest.raises(UserError, match="No space left"):
            wav.write(tone())
    assert np.abs(recordings.read(tmp_path / "a.wav") - tone()).max() < 2e-5


class FullDisk:
    """A file that takes 100 bytes and then no more."""

    def __init__(self, file) -> None:
        self.file, self.room = file, 100
        self.seek, self.close = file.seek, file.close

    def write(self, data: bytes) -> int:
        if not self.room:
            raise NO_SPACE
        written, self.room = self.file.write(data[: self.room]), 0
        return written


def test_header_of_unknown_length_can_be_read_to_the_end():
    header = recordings.wav_header(None)
    assert len(header) == 44
    assert struct.unpack("<I", header[-4:]) == (0xFFFFFFFF,)
    assert len(recordings.read(header + recordings.pcm16(tone()))) == len(tone())
