"""The base speaks before it is trained: the same as ever, and it can be trained afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orpheus.config import LoraOptions, ModelOptions, SamplingOptions, SftOptions, TrainOptions
from orpheus.data.replay import Line
from orpheus.errors import UserError
from orpheus.tools.replay import speaker
from orpheus.tools.train import settle

ROOT = Path(__file__).resolve().parents[2]
SHORT = SamplingOptions(decoding="framed", max_new_tokens=70)


def test_it_says_what_it_would_speak(tts):
    speak = speaker(tts.engine.loaded, tts.renderer, SHORT)
    spoken = speak([Line("Hi.", None), Line("Good day.", None)], [5, 6])
    for (codes, stop), speech in zip(spoken, tts.attempt(["Hi.", "Good day."], sampling=replace(SHORT, seed=5)),
                                     strict=True):  # fmt: skip
        assert codes.frames == 10 and all(np.array_equal(a, b) for a, b in zip(codes, speech.codes, strict=True))
        assert stop.kind == "end_of_ids"


@pytest.mark.parametrize("in_4bit", [False, True])
def test_it_can_be_trained_afterwards(base_dir, in_4bit):
    import torch

    from orpheus.format.prompt import Renderer
    from orpheus.model.adapter import add_lora
    from orpheus.model.base import load_base

    model = load_base(str(base_dir), load_in_4bit=in_4bit)
    speaker(model, Renderer(model.tokenizer, model.layout), SHORT)([Line("Hi.", None)], [5])
    adapted = add_lora(model, LoraOptions(r=4), alpha=4, gradient_checkpointing=False, seed=1).model.train()
    ids = torch.tensor([[262, 256, 40, 41, 258, 263, 264, 260, 300, 4400]])
    adapted(input_ids=ids, labels=ids).loss.backward()
    grads = [p.grad for p in adapted.parameters() if p.requires_grad and p.grad is not None]
    assert grads and any(bool(g.abs().sum() > 0) for g in grads)


def test_a_base_of_unknown_voices_is_refused_before_anything_is_loaded(base_dir, codec_dir):
    options = SftOptions(ModelOptions(base=str(base_dir), codec=str(codec_dir)), train=TrainOptions(replay=4))
    with pytest.raises(UserError, match="voices.*not known"):
        settle(options)


def test_a_negative_number_is_refused():
    with pytest.raises(UserError, match="replay is -1"):
        TrainOptions(replay=-1)


@pytest.mark.slow
def test_from_the_embedded_base_to_the_card(tmp_path):
    """The whole road, twice: the second time nothing is spoken, and the sequences are the same."""
    hashes = []
    for number in range(2):
        command = [sys.executable, "-m", "orpheus", "train", "--preset", "tiny", "--replay", "6", "--limit", "20",
                   "--max-steps", "2", "--no-speak-samples", "--output-dir", f"lora_{number}"]  # fmt: skip
        done = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True,
                              text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert ("replay: " in done.stderr) == (number == 0)
        assert "utterances of the base itself" in done.stdout
        replayed = json.loads((tmp_path / f"lora_{number}" / "orpheus.json").read_text())["data"]["replay"]
        hashes.append(replayed["hash"])
        assert replayed["utterances"] + sum(replayed["left_out"].values()) == 6
        assert "spoken by the base itself" in (tmp_path / f"lora_{number}" / "README.md").read_text(encoding="utf-8")
    assert hashes[0] == hashes[1]
