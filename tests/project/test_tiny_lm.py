"""What the tiny base is trained on (data/make/tiny_lm.py): ids, slots, and the word that each frame speaks."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from orpheus.config import DATA_DIR
from orpheus.format.tokens import FRAME_SLOTS, Codes
from orpheus.model.base import load_tokenizer

sys.path.insert(0, str(DATA_DIR / "make"))  # its scripts are run from there, and import each other

TEXT = "Oh no, <gasps> I can't."
ENDS_S = [0.2, 0.5, 1.0, 1.2, 1.6]
FRAMES = 24


@pytest.fixture(scope="module")
def model():
    import torch

    torch.manual_seed(0)
    from tiny_lm import TinyModel

    return TinyModel(load_tokenizer(str(DATA_DIR / "tiny_orpheus")), [1024, 1024, 1024])


def sequences(model, voice="tara", ends_s=ENDS_S):
    from tiny_lm import Sequences

    layers = [np.arange(count * FRAMES) % 1024 for count in (1, 2, 4)]
    audio = SimpleNamespace(texts=[TEXT], voices=[voice], word_ends_s=[ends_s])
    return Sequences(model, audio, [Codes(*layers)])


@pytest.mark.parametrize("voice", ["tara", ""])
def test_each_frame_names_its_word_and_the_next(model, voice):
    words = sequences(model, voice).words[0]
    middles_s = (np.arange(FRAMES) + 0.5) * 2048 / 24_000
    names = np.array(model.tokenizer.convert_ids_to_tokens(words.flatten())).reshape(words.shape)
    said = ["ĠOh" if voice else "O", "Ġno", "gasps", "ĠI", "Ġcan", "<|eot_id|>"]
    starts_s = [0.0, *ENDS_S[:-1]]  # the last word lasts to the end of the sound
    for name, middle_s in zip(names, middles_s, strict=True):
        word = max(i for i, start_s in enumerate(starts_s) if start_s < middle_s)
        assert list(name) == said[word : word + 2]


def test_words_stand_where_the_codes_are_the_targets(model):
    ((ids, slots, words),) = sequences(model).batches(4096, shuffle=False)
    assert ((words[..., 0] >= 0) == ((slots >= 0) & (slots < FRAME_SLOTS))).all()
    assert int((slots == 0).sum()) == FRAMES and ids.shape[1] == slots.shape[1] + 1
    ((_, _, unknown),) = sequences(model, ends_s=[]).batches(4096, shuffle=False)
    assert (unknown < 0).all()


def test_reading_is_learnt_below_the_layer_that_must_know_it(model):
    from tiny_lm import READ_LAYER

    batch = next(sequences(model).batches(4096, shuffle=False))
    _, reading = model.losses(*batch, 0.1)
    reading.backward()
    moved = [bool(layer.self_attn.q_proj.weight.grad is not None) for layer in model.lm.model.layers]
    assert moved == [i <= READ_LAYER for i in range(len(moved))]
    model.lm.zero_grad()
    unknown = next(sequences(model, ends_s=[]).batches(4096))
    assert model.losses(*unknown, 0.1)[1] == 0


def test_saved_and_loaded_weights_are_the_same(model, tmp_path):
    import torch

    model.save(tmp_path / "a")
    before = model.lm.model.embed_tokens.weight.detach().clone()
    model.load(tmp_path / "a")
    assert torch.equal(model.lm.model.embed_tokens.weight, before.bfloat16().float())
