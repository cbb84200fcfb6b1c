"""The recogniser: what it hears depends on the sound alone, and a language model of the domain helps it."""

from __future__ import annotations

import csv
import logging
import math
import sys
from collections import defaultdict

import numpy as np
import pytest

from orpheus.audio import recordings
from orpheus.config import DATA_DIR
from orpheus.errors import MissingPackage, UserError
from orpheus.evaluate.metrics import word_errors, words
from orpheus.evaluate.recognise import PocketSphinx, arpa_bigrams, find_recogniser

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
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with caplog.at_level(logging.WARNING):
        assert find_recogniser("auto") is None
    assert "pip install pocketsphinx" in caplog.text
    with pytest.raises(MissingPackage, match="pip install pocketsphinx"):
        find_recogniser("pocketsphinx")
    assert find_recogniser("none") is None


def test_finding_it(general):
    assert find_recogniser("auto").name == general.name
