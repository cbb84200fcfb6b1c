"""What a sound file says of itself: synthetic, by which voice, model, seed and software, and no word of folders."""

from __future__ import annotations

import dataclasses

import av
import numpy as np
import pytest

from orpheus import __version__
from orpheus.audio.recordings import FORMATS
from orpheus.config import ReadingOptions, SamplingOptions
from orpheus.model.provenance import short_name, spoken_note
from orpheus.speak.live import to_wav
from orpheus.speak.speech import Speech, Timings


def noted(path) -> str:
    with av.open(str(path)) as file:
        found = {name.lower(): value for name, value in {**file.metadata, **file.streams[0].metadata}.items()}
    return found["comment"]


@pytest.fixture
def speech(tts):
    codes = tts.codec.encode([np.zeros(2048, np.float32)])[0]
    sound = np.sin(np.arange(24000) / 20).astype(np.float32) / 2
    return Speech("Hi.", None, sound, codes, "end_of_speech", "", 7, Timings(0.1, 0.2, 8), tts.provenance)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_that_is_saved(speech, tmp_path, format, adapter_dir):
    speech = dataclasses.replace(speech, voice="유나")
    note = noted(speech.save(tmp_path / f"a.{format}"))
    assert note == speech.note
    assert note.startswith("Synthetic speech") and "Voice: 유나" in note and "seed: 7" in note
    assert note.endswith(f"Orpheus LoRA {__version__}")
    assert adapter_dir.name in note and str(adapter_dir.parent) not in note and "/" not in note


def test_a_voice_without_a_name(speech):
    assert "Voice: the only one" in speech.note


def test_what_is_streamed(tts, tmp_path):
    reading = tts.read("Hello there.", sampling=SamplingOptions(seed=5, max_new_tokens=70, decoding="framed"),
                       reading=ReadingOptions())  # fmt: skip
    to_wav(reading, tmp_path / "a.wav")
    assert noted(tmp_path / "a.wav") == reading.note and "seed: 5" in reading.note


@pytest.mark.parametrize("name, short", [
    ("unsloth/orpheus-3b-0.1-ft", "unsloth/orpheus-3b-0.1-ft"),
    ("embedded:tiny_orpheus", "embedded:tiny_orpheus"),
    ("/home/anna/secret/voice.gguf", "voice.gguf"),
    ("../anna/lora_model", "lora_model"),
    ("work/of/anna", "anna"),
    ("/x/hub/models--owner--my-voice/snapshots/0a1b", "owner/my-voice"),
])  # fmt: skip
def test_folders_are_named_without_the_way_to_them(name, short):
    assert short_name(name) == short


def test_a_model_that_tells_nothing():
    assert "model: not known" in spoken_note(None, 1, {})
