"""What a loader would do in silence is refused: 16 bit for 4, positions stretched, Unsloth without a GPU."""

from __future__ import annotations

import pytest

from orpheus.errors import UserError
from orpheus.model.base import load_base


def test_four_bit_that_did_not_come_about_is_refused(base_dir, monkeypatch):
    """The layers are asked, not the one who loaded them: Unsloth prints that it does without, and goes on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orpheus.model import base as module

    def in_16(base, *_):
        return AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)

    monkeypatch.setattr(module, "_load_transformers", in_16)
    with pytest.raises(UserError, match="none of its layers is.*--no-load-in-4bit"):
        load_base(str(base_dir), load_in_4bit=True)
    assert not load_base(str(base_dir), load_in_4bit=False).in_4bit


def test_clips_longer_than_the_base_s_context_are_refused(base_dir):
    assert load_base(str(base_dir), load_in_4bit=False, max_seq_length=16384).context_length == 16384
    with pytest.raises(UserError, match="max-seq-length is 16385.*built for 16384 tokens"):
        load_base(str(base_dir), load_in_4bit=False, max_seq_length=16385)


def test_unsloth_without_a_gpu_is_refused_before_it_is_imported(base_dir, monkeypatch, tmp_path):
    """Some versions of it would go on without one."""
    (tmp_path / "unsloth.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match="Unsloth needs a CUDA GPU.*--backend transformers"):
        load_base(str(base_dir), load_in_4bit=False, backend="unsloth")
