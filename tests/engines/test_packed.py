"""4 bit on a CPU: packed for speaking, never for training."""

from __future__ import annotations

import pytest
import torch

from orpheus.config import SamplingOptions
from orpheus.engines.torch.engine import TorchEngine
from orpheus.model.adapter import attach_adapter
from orpheus.model.base import load_base, pack_for_inference
from tests.support.slotted import slotted
from tests.support.voices import rows_of

IDS = torch.tensor([[262, 256, 40, 41, 258, 263, 264, 260]])
LINEAR_LAYERS = 2 * 7


def kernel_is_here() -> bool:
    import bitsandbytes

    return bool(bitsandbytes.functional.has_avx512bf16())


needs_kernel = pytest.mark.skipif(not kernel_is_here(), reason="bitsandbytes' CPU kernel needs AVX512-BF16")


def logits(loaded):
    with torch.inference_mode():
        return loaded.model(input_ids=IDS).logits.float()


@needs_kernel
@pytest.mark.parametrize("adapted", [False, True])
def test_packed_weights_give_nearly_the_same_scores(base_dir, adapter_dir, adapted):
    """Within 2 % of their spread, and more than nothing: the kernel keeps its scales in bfloat16."""
    loaded = load_base(str(base_dir), load_in_4bit=True, dtype=torch.bfloat16)
    if adapted:
        loaded = attach_adapter(loaded, adapter_dir)
    before = logits(loaded)
    assert torch.equal(before, logits(loaded))  # a pass alone packs nothing
    assert pack_for_inference(loaded) == LINEAR_LAYERS
    after = logits(loaded)
    assert 0 < (after - before).std() < 0.02 * before.std()


@needs_kernel
def test_rows_of_a_packed_batch_equal_rows_alone(base_dir, layout):
    loaded = load_base(str(base_dir), load_in_4bit=True, dtype=torch.bfloat16)
    pack_for_inference(loaded)
    engine, prompts = TorchEngine(loaded), [IDS[0].tolist(), IDS[0, 1:].tolist()]

    def speak(prompts, seeds):
        with slotted(loaded.model, layout):
            return rows_of(engine, prompts, SamplingOptions(max_new_tokens=14, temperature=0), seeds)

    both = speak(prompts, [1, 2])
    assert [len(row) for row in both] == [14, 14]
    assert [speak([prompt], [seed])[0] for prompt, seed in zip(prompts, [1, 2], strict=True)] == both


def test_what_is_trained_or_computed_in_32_bit_is_not_packed(base_dir):
    assert pack_for_inference(load_base(str(base_dir), load_in_4bit=True)) == 0
    assert pack_for_inference(load_base(str(base_dir), load_in_4bit=False, dtype=torch.bfloat16)) == 0
    loaded = load_base(str(base_dir), load_in_4bit=True, dtype=torch.bfloat16)
    loaded.model.train()
    assert pack_for_inference(loaded) == 0
    hidden = torch.randn(1, 64, dtype=torch.bfloat16, requires_grad=True)
    loaded.model.eval().model.layers[0].mlp.up_proj(hidden).sum().backward()
    assert hidden.grad is not None


def test_the_voice_is_packed(adapter_dir, monkeypatch):
    """OrpheusInference packs after the adapter is on."""
    from orpheus.engines import choose
    from orpheus.speak.inference import OrpheusInference

    seen = []
    monkeypatch.setattr(choose, "pack_for_inference", lambda loaded: seen.append(hasattr(loaded.model, "peft_config")))
    OrpheusInference(adapter_dir, load_in_4bit=True)
    assert seen == [True]
