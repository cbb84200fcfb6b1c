"""The recogniser: what it hears depends on the sound alone, and a language model of the domain helps it."""

from __future__ import annotations

import csv
import logging
import math
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

from orpheus.audio import recordings
from orpheus.config import DATA_DIR
from orpheus.errors import MissingPackage, UserError
from orpheus.hearing import whisper
from orpheus.hearing.metrics import word_errors, words
from orpheus.hearing.recognise import PocketSphinx, arpa_bigrams, find_recogniser

CORPUS = DATA_DIR / "corpus"


@pytest.fixture(scope="module")
def clips() -> list[tuple[str, np.ndarray]]:
    """Two clips of the embedded corpus, with their texts."""
    with open(CORPUS / "metadata.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(row["text"], recordings.read(CORPUS / row["file_name"])) for row in (rows[21], rows[22])]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    with open(CORPUS / "metadata.csv", encoding="utf-8") as file:
        return [row["text"] for row in csv.DictReader(file)]


def probabilities(arpa: str) -> tuple[dict[str, float], dict[str, float], dict[str, dict[str, float]]]:
    """An ARPA file as unigrams, back-off weights and bigrams."""
    sections: dict[str, list[list[str]]] = defaultdict(list)
    for line in arpa.splitlines():
        if line.startswith("\\"):
            name = line
        elif line:
            sections[name].append(line.split("\t"))
    single = {cells[1]: 10 ** float(cells[0]) for cells in sections["\\1-grams:"]}
    weights = {cells[1]: 10 ** float(cells[2]) for cells in sections["\\1-grams:"] if len(cells) == 3}
    pairs: dict[str, dict[str, float]] = defaultdict(dict)
    for p, words_ in sections["\\2-grams:"]:
        before, word = words_.split()
        pairs[before][word] = 10 ** float(p)
    counts = dict(cells[0].removeprefix("ngram ").split("=") for cells in sections["\\data\\"])
    assert counts == {"1": str(len(single)), "2": str(sum(map(len, pairs.values())))} and "\\end\\" in arpa
    return single, weights, pairs


@pytest.mark.parametrize(
    "sentences",
    [
        [["a", "b"], ["a", "c", "a"], ["b"]],
        [["a"]],
        [["a", "a", "b"], ["b", "a"], ["a"], ["b"]],  # after 'a' every word was seen: there is nothing to back off to
    ],
)
def test_the_language_model_adds_up_to_one_after_every_word(sentences):
    single, weights, pairs = probabilities(arpa_bigrams(sentences))
    every = set(single) - {"<s>"}
    assert every == {word for s in sentences for word in s} | {"</s>"}
    assert math.fsum(single[word] for word in every) == pytest.approx(1, abs=1e-4)
    for before in every - {"</s>"} | {"<s>"}:
        total = math.fsum(pairs[before].get(word) or weights[before] * single[word] for word in every)
        assert total == pytest.approx(1, abs=1e-4), before


@pytest.fixture(scope="module")
def general() -> PocketSphinx:
    return PocketSphinx()


@pytest.fixture(scope="module")
def heard(general, clips) -> list[str]:
    return [general.transcribe(samples) for _, samples in clips]


def test_the_domain_s_language_model_hears_no_worse(general, heard, clips, texts):
    domain = PocketSphinx(texts)
    errors = sum(word_errors(text, words_) for (text, _), words_ in zip(clips, heard, strict=True))
    assert errors < 0.5 * sum(len(words(text)) for text, _ in clips)  # it does recognise speech
    transcripts = [domain.transcribe(samples) for _, samples in clips]
    assert sum(word_errors(text, words_) for (text, _), words_ in zip(clips, transcripts, strict=True)) <= errors
    assert set(" ".join(transcripts).split()) <= {word for text in texts for word in words(text)}
    assert general.name != domain.name and "domain" in domain.name


def test_a_transcript_depends_on_the_clip_alone(general, heard, clips):
    assert [general.transcribe(samples) for _, samples in reversed(clips)] == heard[::-1]


def test_silence_has_no_words(general):
    assert general.transcribe(np.zeros(0, np.float32)) == general.transcribe(np.zeros(24000, np.float32)) == ""


def test_words_without_a_pronunciation_are_named_and_left_out(texts, caplog):
    with caplog.at_level(logging.WARNING):
        PocketSphinx([*texts[:5], "A qwrtx blorpf."])
    assert "can't pronounce 2 of the" in caplog.text and "qwrtx, blorpf" in caplog.text
    with pytest.raises(UserError, match="none of the 2 words.*English"):
        PocketSphinx(["Qwrtx blorpf!"])


def test_a_missing_package_is_said_or_raised(monkeypatch, caplog):
    for package in ("pocketsphinx", "faster_whisper"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(whisper, "ready", lambda: False)
    monkeypatch.setattr("orpheus.hearing.recognise.ready", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert find_recogniser("auto") is None
    assert "pip install pocketsphinx" in caplog.text and "pip install faster-whisper" in caplog.text
    with pytest.raises(MissingPackage, match="pip install pocketsphinx"):
        find_recogniser("pocketsphinx")
    with pytest.raises(MissingPackage, match="pip install faster-whisper"):
        find_recogniser("whisper")
    assert find_recogniser("none") is None


# ---- Whisper ----

bundled = pytest.mark.skipif(not whisper.ready(), reason="needs faster-whisper, and tiny.en on this machine")


@pytest.fixture(scope="module")
def tiny() -> whisper.Whisper:
    return find_recogniser("auto")


@bundled
def test_whisper_hears_the_words_and_each_clip_by_itself(tiny, clips):
    assert isinstance(tiny, whisper.Whisper) and tiny.name.startswith("faster-whisper") and "tiny.en" in tiny.name
    transcripts = [tiny.transcribe(samples) for _, samples in clips]
    errors = sum(word_errors(text, said) for (text, _), said in zip(clips, transcripts, strict=True))
    assert errors <= 0.3 * sum(len(words(text)) for text, _ in clips), transcripts
    assert [tiny.transcribe(samples) for _, samples in reversed(clips)] == transcripts[::-1]
    assert tiny.transcribe(np.zeros(0, np.float32)) == tiny.transcribe(np.zeros(24000, np.float32)) == ""


@bundled
def test_sounds_that_whisper_describes_are_no_words(tiny, clips, monkeypatch):
    said = [" (laughs) Oh [sighs]", " no.", " *gasps* ♪"]
    parts = [SimpleNamespace(text=text, compression_ratio=1.0) for text in said]
    monkeypatch.setattr(tiny, "_model", SimpleNamespace(transcribe=lambda *_, **__: (parts, None)))
    assert tiny.transcribe(clips[0][1]) == "Oh no."


@bundled
def test_a_loop_is_heard_again_without_it(tiny, clips, monkeypatch):
    asked = []

    def transcribe(*_, **how):
        asked.append(how.get("no_repeat_ngram_size"))
        ratio, text = (1.0, "Oh no, the milk.") if asked[-1] else (9.0, " No," * 90)
        return [SimpleNamespace(text=text, compression_ratio=ratio)], None

    monkeypatch.setattr(tiny, "_model", SimpleNamespace(transcribe=transcribe))
    assert tiny.transcribe(clips[0][1]) == "Oh no, the milk." and asked == [None, 3]


@bundled
def test_a_model_of_the_wrong_language_or_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"tiny.en knows no language 'de': it knows en"):
        find_recogniser("whisper", language="de")
    with pytest.raises(UserError, match=r"PocketSphinx knows no language 'de'"):
        find_recogniser("pocketsphinx", language="de")
    with pytest.raises(UserError, match=r"has no model\.bin"):
        find_recogniser("auto", str(tmp_path))
    (tmp_path / "model.bin").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can't be loaded"):
        find_recogniser("whisper", str(tmp_path))


@bundled
def test_a_model_that_can_t_be_had_is_named_with_its_hub_id(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'Systran/faster-whisper-no-such' can't be had"):
        find_recogniser("whisper", "no-such")
