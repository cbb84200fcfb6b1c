"""Speech recognisers: what a stranger would write down. The judge of an evaluation, never part of training.

Whisper (`whisper`) hears nearly what a person does. PocketSphinx runs anywhere, without a download: its English model
comes inside the package. It is no match for a person, so a word error rate means something beside that of the original
recordings, not by itself.
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from itertools import count, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from orpheus.audio.recordings import SAMPLE_RATE_HZ, pcm16
from orpheus.config import RecogniserName
from orpheus.errors import MissingPackage, UserError
from orpheus.hearing.metrics import ENGLISH, words
from orpheus.hearing.whisper import MODEL, Whisper, ready

log = logging.getLogger(__name__)

RATE_HZ = 16000  # what PocketSphinx's model was trained on
EDGE_S = 0.3  # silence before and after: it expects some
PEAK = 0.7
DITHER = 1e-4  # digital silence has no logarithm
DISCOUNT = 0.5  # taken from each count of a word pair, for the pairs that were not seen
LISTED = 5


class Recogniser(Protocol):
    """Writes down what it hears."""

    name: str
    language: str  # two letters

    def transcribe(self, samples: np.ndarray) -> str:
        """The words in a clip, float32 [n] at 24 kHz; '' where there are none."""
        ...


def find_recogniser(
    name: RecogniserName = "auto", model: str | None = None, language: str = ENGLISH
) -> Recogniser | None:
    """The recogniser by name. `model`: Whisper's, by default tiny.en; `language`: two letters, of the texts.

    'auto' is Whisper where it needs no download, or where a model is named; else PocketSphinx. None for 'none', and for
    'auto' where none is installed (a log line says so).
    """
    if name == "none":
        return None
    if name == "whisper" or (name == "auto" and (model or ready())):
        return Whisper(model or MODEL, language)
    if language != ENGLISH:
        raise UserError(f"PocketSphinx knows no language '{language}', only {ENGLISH}: use --recogniser whisper with a "
                        "multilingual --whisper-model, such as small")  # fmt: skip
    try:
        return PocketSphinx()
    except MissingPackage as error:
        if name == "pocketsphinx":
            raise
        log.warning("nothing is transcribed: %s, or  pip install faster-whisper", error)
        return None


class PocketSphinx:
    """CMU PocketSphinx for English, with its general language model or with one made from `texts`.

    `texts` are sentences of the domain: the recogniser then knows only their words, and which follows which.
    Words that its pronunciation dictionary lacks are left out, and named in one log line.
    """

    language = ENGLISH

    def __init__(self, texts: Sequence[str] = ()) -> None:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise MissingPackage("pocketsphinx", "recognising speech") from error
        self.name = f"pocketsphinx {metadata.version('pocketsphinx')}"
        self._decoder: Any = Decoder(loglevel="FATAL")
        self.vocabulary: frozenset[str] | None = None  # the words it can write; None: its general model's
        if texts:
            self.name += ", domain model"
            sentences = self._known(texts)
            self.vocabulary = frozenset(word for sentence in sentences for word in sentence)
            with tempfile.TemporaryDirectory() as folder:
                model, dictionary = Path(folder) / "domain.arpa", Path(folder) / "domain.dict"
                model.write_text(arpa_bigrams(sentences), encoding="utf-8")
                # Its own dictionary has 134,000 words, and it takes seconds to find out that the model lacks them.
                dictionary.write_text("\n".join(self._pronunciations(self.vocabulary)) + "\n", encoding="utf-8")
                self._decoder = Decoder(lm=str(model), dict=str(dictionary), loglevel="FATAL")

    def transcribe(self, samples: np.ndarray) -> str:
        """The words in a clip, float32 [n] at 24 kHz; '' where there are none. Depends on this clip alone."""
        import soxr

        heard = soxr.resample(samples, SAMPLE_RATE_HZ, RATE_HZ) if len(samples) else samples
        peak = float(np.abs(heard).max(initial=0.0))
        if peak == 0.0:
            return ""
        edges = np.pad(PEAK / peak * heard, round(EDGE_S * RATE_HZ))
        noise = np.random.default_rng(0).standard_normal(len(edges))
        self._decoder.reinit_feat()  # else a transcript would depend on the clip before
        self._decoder.start_utt()
        self._decoder.process_raw(pcm16(edges + DITHER * noise), full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        return found.hypstr if found else ""

    def _known(self, texts: Iterable[str]) -> list[list[str]]:
        """The texts as words, without those that have no pronunciation."""
        sentences = [words(text) for text in texts]
        every = dict.fromkeys(word for sentence in sentences for word in sentence)
        unknown = [word for word in every if self._decoder.lookup_word(word) is None]
        if len(unknown) == len(every):
            raise UserError(f"{self.name} knows none of the {len(every)} words of the domain texts: are they English?")
        if unknown:
            more = ", ..." if len(unknown) > LISTED else ""
            log.warning("%s can't pronounce %d of the %d words of the domain texts and leaves them out: %s%s",
                        self.name, len(unknown), len(every), ", ".join(unknown[:LISTED]), more)  # fmt: skip
        return [known for s in sentences if (known := [word for word in s if word not in unknown])]

    def _pronunciations(self, vocabulary: Iterable[str]) -> Iterator[str]:
        """The dictionary's lines for the words: 'a AH', 'a(2) EY'."""
        for word in sorted(vocabulary):
            for number in count(1):
                name = word if number == 1 else f"{word}({number})"
                if (sounds := self._decoder.lookup_word(name)) is None:
                    break
                yield f"{name} {sounds}"


def arpa_bigrams(sentences: Sequence[Sequence[str]]) -> str:
    """A language model of word pairs in the ARPA format, log10, with `<s>` and `</s>` around each sentence.

    Absolute discounting with back-off (Ney, Essen and Kneser 1994): after each word, the probabilities of all
    words that occur in the sentences add up to 1.
    """
    pairs: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in sentences:
        line = ["<s>", *sentence, "</s>"]
        for before, word in pairwise(line):
            pairs[before][word] += 1
    counts = sum(pairs.values(), Counter())  # </s> is a word like others; <s> never follows anything
    total = counts.total()
    share = {word: times / total for word, times in counts.items()}

    unigrams, bigrams = [f"-99\t<s>\t{_log(_backoff(pairs['<s>'], share))}"], []
    for word in sorted(share):
        weight = f"\t{_log(_backoff(pairs[word], share))}" if word in pairs else ""
        unigrams.append(f"{_log(share[word])}\t{word}{weight}")
    for before in sorted(pairs):
        after = pairs[before]
        taken = DISCOUNT if len(after) < len(share) else 0.0  # nothing to save for, if all words were seen
        bigrams += [f"{_log((after[w] - taken) / after.total())}\t{before} {w}" for w in sorted(after)]
    head = ["\\data\\", f"ngram 1={len(unigrams)}", f"ngram 2={len(bigrams)}"]
    return "\n".join([*head, "", "\\1-grams:", *unigrams, "", "\\2-grams:", *bigrams, "", "\\end\\", ""])


def _backoff(after: Counter[str], share: dict[str, float]) -> float:
    """The factor that turns the shares of the words not seen here into what the discount has saved for them."""
    if len(after) == len(share):
        return 0.0
    return DISCOUNT * len(after) / after.total() / (1 - sum(share[word] for word in after))


def _log(probability: float) -> str:
    return f"{math.log10(probability):.6f}" if probability > 0 else "-99"
