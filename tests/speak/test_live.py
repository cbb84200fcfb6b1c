"""Speech that leaves while it is made: WAVs that are whole at any moment, PCM and nothing but PCM, interruptions."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orpheus.audio.recordings import pcm16, wav_header
from orpheus.config import ReadingOptions, SamplingOptions
from orpheus.data.usual import SpeechStatistics
from orpheus.errors import UserError
from orpheus.speak import live as aloud
from orpheus.tools.prompts import read_prompts
from orpheus.tools.speak import SpeakOptions, main
from tests.support.voices import ScriptedEngine, some_codes

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--adapter", "None", "--preset", "tiny", "--voice", "tara", "--seed", "3"]
TEXT = "I missed you so much, <sighs> it has been a very long day."


@pytest.fixture
def speaking(tts, layout, monkeypatch):
    """`tts` that speaks nine frames for every text, and is what the command line loads."""
    ids = [*layout.flatten(some_codes(9)).tolist(), layout.end_of_speech]
    monkeypatch.setattr(tts, "engine", ScriptedEngine(layout, [ids]))
    monkeypatch.setattr(tts, "usual", SpeechStatistics(loudness_db=-60.0))
    monkeypatch.setattr(aloud, "load_voice", lambda options: tts)
    monkeypatch.setattr("orpheus.speak.inference.look_up", lambda wish: None)
    return tts


def options(folder: Path, *prompts: str, **more) -> SpeakOptions:
    return SpeakOptions(prompts=prompts, out=folder, sampling=SamplingOptions(seed=5), **more)


def test_a_streamed_wav_is_generate_s(speaking, tmp_path, capsys):
    main(options(tmp_path, "Hello there.", "And more.", stream=True))
    for i, text in enumerate(("Hello there.", "And more.")):
        samples, rate = soundfile.read(tmp_path / f"output_{i}.wav", dtype="int16")
        whole = speaking.generate(text, seed=5 + i)[0].samples
        assert rate == 24000 and samples.tobytes() == pcm16(whole)
        told = json.loads((tmp_path / f"output_{i}.json").read_text())
        assert told["finished"] and told["text"] == text and told["seed"] == 5 + i and told["tokens"] == 64
        assert told["pieces"][0]["finish_reason"] == "end_of_speech" and told["model"]["engine"]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "first audio after" in lines[0] and "real-time factor" in lines[0]
    assert "tokens/s" in lines[0] and "Hello there." in lines[0]
    main(options(tmp_path, "Once more.", stream=True))  # numbered on
    assert (tmp_path / "output_2.wav").exists()


def test_the_file_can_be_played_at_any_moment(speaking, tmp_path, monkeypatch):
    reading = speaking.read("Hello there. And more.", reading=ReadingOptions(piece_chars=14))
    seen = []

    class Watched(aloud.WavStream):
        def write(self, samples):
            super().write(samples)
            with wave.open(str(self.path)) as file:
                seen.append((file.getnframes(), len(file.readframes(10**6)) // 2, self.samples))

    monkeypatch.setattr(aloud, "WavStream", Watched)
    aloud.to_wav(reading, tmp_path / "a.wav")
    assert len(seen) > 5 and all(a == b == c for a, b, c in seen) and seen[0][0] < seen[-1][0]


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError("x")])
def test_what_ends_it_leaves_a_whole_file(speaking, tmp_path, monkeypatch, error):
    reading = speaking.read("Hello there. And more.", reading=ReadingOptions(piece_chars=14))
    speak = reading._speak

    def fails(text, *rest):
        if text == "And more.":
            raise error
        return speak(text, *rest)

    reading._speak = fails
    with pytest.raises(error if isinstance(error, type) else UserError):
        aloud.to_wav(reading, tmp_path / "a.wav")
    samples, _ = soundfile.read(tmp_path / "a.wav")
    told = json.loads((tmp_path / "a.json").read_text())
    assert len(samples) == 9 * 2048 and not told["finished"] and len(told["pieces"]) == 1


def test_nothing_is_overwritten_unasked(speaking, tmp_path):
    (tmp_path / "output_0.json").write_text("mine")
    with pytest.raises(UserError, match=r"output_0.json exists already"):
        main(options(tmp_path, "Hello.", stream=True))
    assert (tmp_path / "output_0.json").read_text() == "mine" and not (tmp_path / "output_0.wav").exists()
    main(options(tmp_path, "Hello.", stream=True, overwrite=True))


def test_bad_texts_are_found_before_the_first_is_spoken(speaking, tmp_path):
    with pytest.raises(UserError, match="not closed"):
        main(options(tmp_path, "Hello.", "a <b", stream=True))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="--transcribe needs whole speeches"):
        main(options(tmp_path, "Hello.", stream=True, transcribe="auto"))


def test_long_makes_one_text_of_all_lines(speaking, tmp_path, capsys):
    (tmp_path / "book.txt").write_text("Hello there.\nAnd more.\n\nThe end.\n")
    asked = SpeakOptions(file=tmp_path / "book.txt", out=tmp_path, long=True, reading=ReadingOptions(piece_chars=12))
    assert read_prompts((), asked.file, long=True) == ["Hello there.\nAnd more.\n\nThe end."]
    main(asked)
    told = json.loads((tmp_path / "output_0.json").read_text())
    assert [piece["text"] for piece in told["pieces"]] == ["Hello there.", "And more.", "The end."]
    captured = capsys.readouterr()
    assert "3 of 3 pieces" in captured.out and "3/3" in captured.err  # the bar
    assert not (tmp_path / "output_1.wav").exists()


def test_pcm_is_the_wav_s_samples(speaking, tmp_path):
    out = io.BytesIO()
    reading = speaking.read("Hello there.", sampling=SamplingOptions(seed=5))
    assert aloud.to_pcm(reading, out)
    assert out.getvalue() == pcm16(speaking.generate("Hello there.", seed=5)[0].samples)


def test_a_terminal_gets_no_pcm(monkeypatch):
    monkeypatch.setattr("sys.stdout", type("Terminal", (), {"isatty": lambda self: True})())
    with pytest.raises(UserError, match="is a terminal.*aplay"):
        aloud.raw_stdout()


# ---- the program from the outside, with the tiny voice ----


def start(*arguments: str, cwd: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(ROOT / "inference.py"), *TINY, *arguments], cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            # A shell's background job ignores Ctrl-C, and so would what it starts.
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # fmt: skip


def test_pcm_into_a_pipe_that_closes(tmp_path):
    whole = start("--pcm", TEXT, cwd=tmp_path)
    out, err = whole.communicate()
    assert whole.returncode == 0 and b"first audio after" in err
    process = start("--pcm", TEXT, cwd=tmp_path)
    head = process.stdout.read(5000)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(30) == 0 and b"Error" not in err and b"rror:" not in err
    assert head == out[:5000] and len(out) > 100_000
    assert np.abs(np.frombuffer(out, "<i2")).max() > 1000


def test_ctrl_c_keeps_what_was_written(tmp_path):
    (tmp_path / "book.txt").write_text(f"{TEXT}\n\n" * 40)
    process = start("--file", "book.txt", "--long", "--out", ".", cwd=tmp_path)
    wav = tmp_path / "output_0.wav"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (wav.exists() and wav.stat().st_size > 100_000):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and b"interrupted: what was finished is kept" in err
    samples, _ = soundfile.read(wav)
    header = wav_header(len(samples), soundfile.SoundFile(wav).comment)
    assert len(samples) > 49_000 and wav.stat().st_size == len(header) + 2 * len(samples)
    assert b"Synthetic speech" in header
    assert json.loads((tmp_path / "output_0.json").read_text())["finished"] is False
