"""Voice by example: what the model is shown, in ids, and what is said of references that can't be shown."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import soundfile

from orpheus.errors import UserError
from orpheus.tools.speak import SpeakOptions, check
from tests.support.codec_fixtures import speech_like
from tests.support.voices import ScriptedEngine, some_codes


class Listening(ScriptedEngine):
    """A scripted engine that keeps the prompts."""

    def stream(self, prompts, sampling, seeds):
        self.prompts = [list(prompt) for prompt in prompts]
        return super().stream(prompts, sampling, seeds)


@pytest.fixture
def engine(tts, layout, monkeypatch):
    ids = [*layout.flatten(some_codes(4)).tolist(), layout.end_of_speech]
    engine = Listening(layout, [ids] * 3)
    monkeypatch.setattr(tts, "engine", engine)
    return engine


@pytest.fixture
def pair(tmp_path):
    """A recording of 0.5 s, 6 frames, and its text."""
    path = tmp_path / "me.wav"
    soundfile.write(path, speech_like(0.5, seed=1), 24000)
    return str(path), "Good morning."


def expected(tts, pairs, text, voice=None) -> list[int]:
    """By hand, id by id."""
    lo, ids = tts.engine.layout, []
    ends = (lo.end_of_text, lo.end_of_human, lo.start_of_ai, lo.start_of_speech)
    for path, said in pairs:
        samples, _ = soundfile.read(path, dtype="float32")
        codes = lo.flatten(tts.codec.encode([samples])[0]).tolist()
        before = [lo.start_of_human, *tts.renderer.text_ids(said, voice), *ends]
        ids += [*before, *codes, lo.end_of_speech, lo.end_of_ai]
    return [*ids, lo.start_of_human, *tts.renderer.text_ids(text, voice), *ends]


def test_the_exact_ids(tts, engine, pair):
    options = {"seed": 1, "max_new_tokens": 50}
    two = [pair, (pair[0], "Once more.")]
    speech = tts.generate(["Hello.", "Bye."], references=two, **options)[0]
    assert engine.prompts == [expected(tts, two, "Hello."), expected(tts, two, "Bye.")]
    assert [one["text"] for one in speech.provenance["references"]] == ["Good morning.", "Once more."]
    streamed = np.concatenate(list(tts.stream("Hello.", references=two, **options)))
    assert engine.prompts == [expected(tts, two, "Hello.")]
    np.testing.assert_allclose(streamed, speech.samples, atol=1e-5)
    tts.generate("Hello.", voice="mia", references=[pair], **options)
    assert engine.prompts == [expected(tts, [pair], "Hello.", "mia")]
    samples, _ = soundfile.read(pair[0], dtype="float32")
    tts.generate("Hello.", references=[(samples, pair[1])], **options)
    assert engine.prompts == [expected(tts, [pair], "Hello.")]
    tts.generate("Hello.", **options)
    assert engine.prompts == [expected(tts, [], "Hello.")]


def test_an_example_needs_no_name_beside_it(tts, engine, pair, monkeypatch):
    """A base with several voices asks which; one that is shown a voice is not asked."""
    monkeypatch.setattr(tts, "has_adapter", False)
    monkeypatch.setattr(tts, "base_voices", ("leo", "tara"))
    with pytest.raises(UserError, match="several voices"):
        tts.generate("Hello.", seed=1)
    tts.generate("Hello.", references=[pair], seed=1)
    assert engine.prompts == [expected(tts, [pair], "Hello.")]
    tts.generate("tara: Hello.", references=[pair], seed=1)
    assert engine.prompts == [expected(tts, [pair], "Hello.", "tara")]


def test_the_oldest_references_go_first_and_whole(tts, engine, pair, caplog):
    one = len(expected(tts, [pair], "Hello."))
    last = [pair, (pair[0], "The last.")]
    engine.context_length = len(expected(tts, last, "Hello.")) + 50
    with caplog.at_level(logging.WARNING):
        tts.generate("Hello.", references=[pair, *last], seed=1, max_new_tokens=50)
    assert engine.prompts == [expected(tts, last, "Hello.")]
    assert "the first 1 of 3 are not shown" in caplog.text
    list(tts.stream("Hello.", references=[pair, *last], seed=1, max_new_tokens=50))
    assert engine.prompts == [expected(tts, last, "Hello.")]
    engine.context_length = one + 49
    for call in (tts.generate, tts.stream):
        with pytest.raises(UserError, match="reference .*me.wav takes .* tokens.*take a shorter reference"):
            list(call("Hello.", references=[pair], seed=1, max_new_tokens=50))


@pytest.mark.parametrize("reference, says", [
    (("none.wav", "Hello."), "none.wav"),
    (("me.wav", " "), r"what is said in the reference me\.wav\? the text is empty"),
    (("me.wav", None), "what is said in the reference me.wav"),
    ("me.wav", "reference 1 is 'me.wav', expected a pair"),
    ((np.zeros(24000, np.float32), "Hello."), "reference 1 is silent"),
    ((np.zeros((2, 9), np.float32), "Hello."), r"has the shape \(2, 9\), expected mono"),
    (("text.wav", "Hello."), "text.wav"),
])  # fmt: skip
def test_a_reference_that_can_not_be_shown(tts, engine, pair, tmp_path, monkeypatch, reference, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.wav").write_text("no sound")
    for call in (tts.generate, tts.stream):
        with pytest.raises(UserError, match=says):
            list(call("Hello.", references=[reference]))


@pytest.mark.parametrize("given, says", [
    ({"reference": "me.wav"}, "--reference and --reference-text belong together"),
    ({"reference_text": "Hi."}, "--reference and --reference-text belong together"),
    ({"reference": "none.wav", "reference_text": "Hi."}, "there is no file none.wav"),
])  # fmt: skip
def test_the_command_says_early_what_is_missing(given, says, pair, tmp_path, monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    given = {name: Path(value) if name == "reference" else value for name, value in given.items()}
    with pytest.raises(UserError, match=says):
        check(SpeakOptions(out=tmp_path / "out", **given), ["Hello."])
