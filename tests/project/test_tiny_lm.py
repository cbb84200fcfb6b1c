"""What the tiny base is trained on (data/make): codes of a text, ids, slots, and the word that each frame speaks."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from orpheus.config import DATA_DIR
from orpheus.format.tokens import FRAME_SLOTS

sys.path.insert(0, str(DATA_DIR / "make"))  # its scripts are run from there, and import each other

TEXT = "Oh no, <gasps> I can't."


@pytest.fixture(scope="module")
def books():
    """The tables of the vocabulary, but of any sounds: those that ship are not kept."""
    import grammar
    from codebooks import DETAILS, SOUNDS, Codebooks
    from speech import TAG_FRAMES

    rng = np.random.default_rng(0)
    lengths = {"": 1, **TAG_FRAMES} | {word.lower(): int(rng.integers(1, 9)) for word in grammar.vocabulary()}
    sound = {word: rng.integers(0, SOUNDS, n) for word, n in lengths.items()}
    detail = {word: rng.integers(0, DETAILS, (n, 2)) for word, n in lengths.items()}
    voiced = {word: rng.random((n, 4)) < 0.7 for word, n in lengths.items()}
    return Codebooks([], sound, detail, voiced)


@pytest.fixture(scope="module")
def model():
    import grammar
    import torch
    from tiny_lm import TinyModel
    from tiny_tokenizer import make_tokenizer

    torch.manual_seed(0)
    return TinyModel(make_tokenizer(grammar.written_forms(), [TEXT]))


def sequences(model, books, monkeypatch, voice="tara"):
    """Of one text and speaker."""
    from speech import VOICES
    from tiny_lm import Sequences

    made = Sequences(model, books)
    monkeypatch.setattr(made, "text", lambda: TEXT)
    monkeypatch.setattr(made, "voice", lambda: (voice or None, VOICES[voice or "leo"]))
    return made


def test_every_sentence_has_codes_of_its_words_whoever_speaks(books):
    import grammar
    from codebooks import SIZES
    from speech import TAG_FRAMES, VOICES, plan, unnamed

    rng = random.Random(0)
    for turn in range(300):
        text = grammar.tagged_sentence(rng, 0.5) if turn % 2 else grammar.scrambled(rng)
        plans = [plan(text, voice, books.frames) for voice in (VOICES["tara"], unnamed(rng))]
        first, second = (books.codes(made) for made in plans)
        assert [len(level) for level in first] == [len(plans[0].what) * n for n in (1, 2, 4)]
        assert all((level >= 0).all() and (level < size).all() for level, size in zip(first, SIZES, strict=True))
        assert (first[0] == second[0]).all(), "the first codebook knows who speaks"
        said = [books.sound[part] for part in text.lower().replace(",", "").split() if part in TAG_FRAMES]
        assert all(str(part.tolist())[1:-1] in str(first[0].tolist()) for part in said)


def test_the_new_voice_is_no_speaker_of_the_base():
    from speech import VOICES, unnamed

    rng = random.Random(0)
    new = VOICES["Elise"]
    speakers = [unnamed(rng) for _ in range(2000)]
    assert new not in speakers and all(abs(s.pitch - new.pitch) > 3 for s in speakers if s.timbre == new.timbre)
    assert {s.timbre for s in speakers} >= {v.timbre for v in VOICES.values()}  # but of a known size and colour


@pytest.mark.parametrize("voice", ["tara", ""])
def test_each_frame_names_its_word_and_the_next(model, books, voice, monkeypatch):
    row, prompt, words = sequences(model, books, monkeypatch, voice).example()
    names = np.array(model.tokenizer.convert_ids_to_tokens(words.flatten())).reshape(words.shape).tolist()
    lengths = [len(books.sound[word]) for word in ("oh", "no", "<gasps>", "i", "can't")]
    lengths[0] += 1  # the silence before it
    lengths[2] += 1  # the comma's
    lengths[4] += 1  # the last word lasts to the end
    said = ["ĠOh" if voice else "Oh", "Ġno", "gasps", "ĠI", "Ġcan", "<|eot_id|>"]
    assert names == [said[word : word + 2] for word, n in enumerate(lengths) for _ in range(n)]
    assert len(row) == prompt + FRAME_SLOTS * len(words) + 2


def test_words_stand_where_the_codes_are_the_targets(model, books, monkeypatch):
    ids, slots, words = next(sequences(model, books, monkeypatch).batches(4096, pool=1))
    assert ((words[..., 0] >= 0) == ((slots >= 0) & (slots < FRAME_SLOTS))).all()
    assert int((slots == 0).sum()) > 10 and ids.shape[1] == slots.shape[1] + 1
    assert int((slots == FRAME_SLOTS).sum()) == 2  # end_of_speech and end_of_ai


def test_reading_is_learnt_below_the_layer_that_must_know_it(model, books, monkeypatch):
    from tiny_lm import READ_LAYER

    ids, slots, words = next(sequences(model, books, monkeypatch).batches(4096, pool=1))
    _, reading = model.losses(ids, slots, words, 0.1)
    reading.backward()
    moved = [bool(layer.self_attn.q_proj.weight.grad is not None) for layer in model.lm.model.layers]
    assert moved == [i <= READ_LAYER for i in range(len(moved))]
    model.lm.zero_grad()
    assert model.losses(ids, slots, words * 0 - 1, 0.1)[1] == 0


def test_small_words_are_practised_oftener_and_not_tested_oftener(model, books):
    import grammar
    from tiny_lm import Sequences
    from units import SHORT_WORDS

    shares = {}
    for held_out in (False, True):
        made = Sequences(model, books, seed=1, scrambled=1.0, held_out=held_out)
        made.weights = model.word_weights()
        said = [word for _ in range(400) for word in grammar.spoken_words(made.text()).split()]
        shares[held_out] = np.mean([word in SHORT_WORDS for word in said])
    equal = np.mean([word.lower() in SHORT_WORDS for word in grammar.vocabulary()])
    # In half of the texts, 12 times as often: (0.42 + 0.056) / 2.
    assert shares[False] == pytest.approx(0.24, abs=0.04)
    assert shares[True] == pytest.approx(equal, abs=0.02)


def test_saved_and_loaded_weights_are_the_same(model, tmp_path):
    import torch

    model.save(tmp_path / "a")
    before = model.lm.model.embed_tokens.weight.detach().clone()
    model.load(tmp_path / "a")
    assert torch.equal(model.lm.model.embed_tokens.weight, before.bfloat16().float())
