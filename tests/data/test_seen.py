"""What an adapter remembers of its training: recordings and texts, told apart."""

from __future__ import annotations

from types import SimpleNamespace

from orpheus.data.seen import overlap, seen


def clip(key: str, text: str) -> SimpleNamespace:
    return SimpleNamespace(key=key * 64, text=text)


def test_recordings_and_texts_are_counted_apart():
    known = seen([clip("a", "Good morning, <laughs> Anna."), clip("b", "It rained.")])
    assert known == seen([clip("b", "It rained."), clip("a", "good morning anna")] * 2)
    assert overlap(known, [("a" * 64, "Good morning, Anna!"), ("a" * 64, "Another text"), ("c" * 64, "IT RAINED"),
                           ("c" * 64, "It snowed.")]) == (2, 1)  # fmt: skip
    assert overlap("", [("a" * 64, "It rained.")]) == (0, 0)


def test_what_was_held_out_was_not_seen(run, tmp_path):
    from tests.support.codec_fixtures import speech_like
    from tests.support.corpus_fixtures import TEXTS, dataset

    texts = [f"{text} {i}" for i in range(4) for text in TEXTS]
    corpus = run(dataset([speech_like(0.5, seed=i) for i in range(len(texts))], texts), validation_share=0.25)
    assert len(corpus.trained) == len(corpus.train) < len(corpus.clips)
    found, others = overlap(seen(corpus.trained), [(c.key, c.text) for c in corpus.clips])
    assert (found, others) == (len(corpus.train), 0)
