"""Adapters of other trainers, and files that only look like an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from orpheus.errors import UserError
from orpheus.model.adapter import attach_adapter, merge
from orpheus.model.base import load_base
from tests.support.tiny import save_base

IDS = torch.tensor([[262, 256, 40, 41, 258, 263, 264, 260, 300, 4400, 9000]])
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "base")


def logits(loaded) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()


def made_elsewhere(base: Path, folder: Path, **options) -> Path:
    """An adapter as peft alone saves it, every number of it random."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    usual = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(usual | options)))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory) -> Path:
    return made_elsewhere(base, tmp_path_factory.mktemp("adapters") / "plain")


KINDS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 8}, "alpha_pattern": {"q_proj": 3}},
    "all_linear": {"target_modules": "all-linear"},
    "regex": {"target_modules": r".*\.1\.self_attn\.[qk]_proj"},
    "some_layers": {"layers_to_transform": [1]},
    "canopy": {"use_rslora": True, "modules_to_save": ["lm_head", "embed_tokens"]},
    "embedding_kept": {"modules_to_save": ["embed_tokens"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "tokens": {"trainable_token_indices": {"embed_tokens": [260, 300, 4400]}},
    "dora": {"use_dora": True},
    "dora_on_some": {"use_dora": True, "rank_pattern": {"v_proj": 2}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_trainers_adapters_speak_attached_and_merged(base, tmp_path, kind):
    """Merged equals attached, both equal peft's own reading, and both differ from the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = made_elsewhere(base, tmp_path / "adapter", **KINDS[kind])
    plain = load_base(str(base), load_in_4bit=False)
    before = logits(plain)
    loaded = attach_adapter(plain, folder)
    attached, modules = logits(loaded), loaded.adapted_modules
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)
    with torch.inference_mode():
        assert torch.allclose(attached, theirs.eval()(input_ids=IDS).logits, atol=1e-4)
    assert (attached - before).abs().max() > 0.01
    merged = merge(loaded)
    assert torch.allclose(logits(merged), attached, atol=1e-3) and merged.adapted_modules == modules > 0

    merged.model.save_pretrained(tmp_path / "whole")  # and what is exported is the same again
    merged.tokenizer.save_pretrained(tmp_path / "whole")
    again = logits(load_base(str(tmp_path / "whole"), load_in_4bit=False))
    assert torch.allclose(again, attached, atol=1e-3)


@pytest.mark.parametrize("kind", ["plain", "canopy", "head", "dora", "tokens"])
def test_they_speak_on_a_4_bit_base(base, tmp_path, kind):
    from orpheus.config import SamplingOptions
    from orpheus.engines.torch.engine import TorchEngine

    folder = made_elsewhere(base, tmp_path / "adapter", **KINDS[kind])
    loaded = attach_adapter(load_base(str(base), load_in_4bit=True), folder)
    best = int(logits(loaded)[0, -1].argmax())
    sampling = SamplingOptions(temperature=0, repetition_penalty=1, max_new_tokens=1)
    assert [t for _, t in TorchEngine(loaded).stream([IDS[0].tolist()], sampling, [0])] == [best]


def changed(folder: Path, copy: Path, weights=lambda tensors: tensors, **config) -> Path:
    from safetensors.torch import load_file, save_file

    copy.mkdir()
    save_file(weights(load_file(folder / WEIGHTS)), copy / WEIGHTS)
    (copy / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | config))
    return copy


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
SILENT = {
    "without peft's prefix": (lambda t: {k.removeprefix("base_model.model."): v for k, v in t.items()}, "no tensor"),
    "another prefix": (lambda t: {k.replace("base_model.model", "model"): v for k, v in t.items()}, "no tensor for"),
    "default in the names": (lambda t: {k.replace(".weight", ".default.weight"): v for k, v in t.items()}, "no tensor"),
    "half of the layers": (lambda t: {k: v for k, v in t.items() if "layers.0" in k}, "no tensor for 6 of the 12"),
    "A alone": (lambda t: {k: v for k, v in t.items() if "lora_A" in k}, "no tensor for 6 of the 12"),
    "no tensor": (lambda t: {}, "no tensor for 12 of the 12.*it has none"),
    "a tensor too many": (lambda t: t | {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight":
                                         torch.ones(4, 64)}, "no such layer"),
    "integers": (lambda t: {k: (v * 100).to(torch.int32) for k, v in t.items()}, "is int32, expected floating"),
    "bytes": (lambda t: t | {FIRST: torch.ones(64, 4, dtype=torch.int8)}, "is int8, expected floating"),
    "not a number": (lambda t: t | {FIRST: t[FIRST] * torch.nan}, "q_proj.lora_B.weight holds NaN"),
    "infinity": (lambda t: t | {FIRST: t[FIRST] / 0}, "holds NaN or infinity"),
    "transposed": (lambda t: t | {FIRST: t[FIRST].T.contiguous()}, r"is \(4, 64\).*promises \(64, 4\)"),
    "flat": (lambda t: t | {FIRST: t[FIRST].flatten()}, r"is \(256,\)"),
    "all zeros": (lambda t: {k: v * (".lora_A" in k) for k, v in t.items()}, "does nothing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SILENT)
def test_what_would_silently_do_nothing_is_refused(base, adapter, tmp_path, kind):
    change, says = SILENT[kind]
    with pytest.raises(UserError, match=says):
        attach_adapter(load_base(str(base), load_in_4bit=False), changed(adapter, tmp_path / "copy", change))


CONFIGS = {
    "prefix tuning": ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING.*expected 'LORA'"),
    "ia3": ({"peft_type": "IA3"}, "'IA3'"),
    "no kind": ({"peft_type": None}, "None"),
    "a rank of millions": ({"r": 10**7}, "ranks .*10000000"),
    "a fraction": ({"r": 4.5}, "ranks"),
    "true": ({"r": True}, "ranks"),
    "a pattern of millions": ({"rank_pattern": {"q_proj": 10**7}}, "ranks"),
    "a pattern that is none": ({"rank_pattern": [1]}, "rank_pattern is"),
    "no scale": ({"lora_alpha": 0}, "lora_alpha"),
    "a scale that is none": ({"lora_alpha": "8"}, "lora_alpha"),
    "an infinite scale": ({"lora_alpha": float("inf")}, "lora_alpha"),
    "dora without magnitudes": ({"use_dora": True}, "no tensor for 6 of the 18"),
    "a module that is not there": ({"modules_to_save": ["lm_head"]}, "no tensor for 1 of the 13"),
    "other targets": ({"target_modules": ["q_proj"]}, "no such layer"),
    "unknown targets": ({"target_modules": ["query"]}, "can't be used with this base"),
    "targets of no kind": ({"target_modules": 7}, "can't be used with this base"),
    "a broken expression": ({"target_modules": "(q_proj"}, "can't be used with this base"),
    "no target": ({"target_modules": []}, "no such layer|can't be used"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_that_do_not_belong(base, adapter, tmp_path, kind):
    config, says = CONFIGS[kind]
    with pytest.raises(UserError, match=says):
        attach_adapter(load_base(str(base), load_in_4bit=False), changed(adapter, tmp_path / "copy", **config))


@pytest.mark.parametrize("text", ["", "[]", "\xff", "[" * 200_000, '{"r": ', "null"])
def test_what_is_no_config(base, adapter, tmp_path, text):
    folder = changed(adapter, tmp_path / "copy")
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="is damaged"):
        attach_adapter(load_base(str(base), load_in_4bit=False), folder)


def test_a_newer_peft_may_write_what_this_one_does_not_know(base, adapter, tmp_path):
    folder = changed(adapter, tmp_path / "copy", of_the_future=True)
    assert attach_adapter(load_base(str(base), load_in_4bit=False), folder).adapted_modules == 6


def test_the_layers_are_counted_and_the_base_stays_as_it_was(base, adapter, tmp_path):
    plain = load_base(str(base), load_in_4bit=False)
    before = logits(plain)
    with pytest.raises(UserError):
        attach_adapter(plain, changed(adapter, tmp_path / "copy", lambda t: {}))
    assert torch.equal(logits(plain), before)
    assert attach_adapter(plain, adapter).adapted_modules == 6  # q, v and down of two layers
