"""The vLLM engine without vLLM: what is missing is named, what can't be had is refused, and what is asked is right."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from orpheus.config import SamplingOptions
from orpheus.engines.vllm.engine import VllmEngine, lora_rank
from orpheus.errors import UserError
from orpheus.format.tokens import ORPHEUS
from tests.support.scripted_server import END, speech
from tests.support.voices import rows_of

PROMPT = [ORPHEUS.start_of_human, ORPHEUS.bos, ORPHEUS.start_of_speech]


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


@pytest.fixture
def package(monkeypatch):
    """A stand-in for the parts of vLLM that are used; it plays `steps` and keeps what it was asked."""
    fake: Any = types.ModuleType("vllm")
    fake.steps, fake.asked, fake.closed, fake.refuses = [speech(1), speech(1), [END]], [], [], None

    class AsyncLLM:
        @classmethod
        def from_engine_args(cls, arguments):
            if fake.refuses:
                raise fake.refuses
            fake.arguments = arguments
            return cls()

        async def generate(self, prompt, params, request_id, lora_request):
            fake.asked.append((prompt, params, request_id, lora_request))
            try:
                for ids in fake.steps:
                    yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids)])
            finally:
                fake.closed.append(request_id)

        def shutdown(self):
            fake.closed.append("engine")

    fake.SamplingParams = SimpleNamespace
    parts = {
        "vllm": fake,
        "vllm.engine": types.ModuleType("vllm.engine"),
        "vllm.engine.arg_utils": SimpleNamespace(AsyncEngineArgs=SimpleNamespace),
        "vllm.lora": types.ModuleType("vllm.lora"),
        "vllm.lora.request": SimpleNamespace(LoRARequest=LoRARequest),
        "vllm.v1": types.ModuleType("vllm.v1"),
        "vllm.v1.engine": types.ModuleType("vllm.v1.engine"),
        "vllm.v1.engine.async_llm": SimpleNamespace(AsyncLLM=AsyncLLM),
        "vllm.sampling_params": SimpleNamespace(RequestOutputKind=SimpleNamespace(DELTA="delta")),
    }
    for name, part in parts.items():
        monkeypatch.setitem(sys.modules, name, part)
    return fake


def run(engine, prompts=(PROMPT,), **options):
    return rows_of(engine, prompts, SamplingOptions(**options), range(5, 5 + len(prompts)))


@pytest.fixture
def folder(tmp_path):
    def write(rank):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": rank}))
        return tmp_path

    return write


def test_what_it_is_asked_for(package, folder):
    engine = VllmEngine("base", ORPHEUS, 4096, folder(64), 2, 3, "bfloat16", gpu_memory_utilization=0.5)
    asked = vars(package.arguments)
    assert (asked["model"], asked["max_model_len"], asked["dtype"]) == ("base", 4096, "bfloat16")
    assert (asked["tensor_parallel_size"], asked["data_parallel_size"]) == (2, 3)
    assert asked["enable_lora"] and asked["max_lora_rank"] == 64 and asked["gpu_memory_utilization"] == 0.5
    ids = [*speech(1), *speech(1)]
    assert run(engine, [PROMPT, PROMPT]) == [[*ids, END]] * 2
    prompt, params, first, lora = package.asked[0]
    assert prompt == {"prompt_token_ids": PROMPT} and lora == LoRARequest("adapter", 1, str(folder(64)))
    assert (params.temperature, params.top_p, params.repetition_penalty) == (0.6, 0.95, 1.1)
    assert (params.seed, params.max_tokens, params.stop_token_ids) == (5, 1200, [END])
    assert package.asked[1][1].seed == 6 and package.asked[1][2] != first
    engine.close()
    assert package.closed[-1] == "engine"


def test_a_row_that_ends_is_taken_out_of_the_batch(package):
    engine = VllmEngine("base", ORPHEUS, 4096)
    assert package.arguments.model == "base" and not hasattr(package.arguments, "enable_lora")
    assert run(engine, max_new_tokens=9) == [[*speech(1), *speech(1)[:2]]]
    package.steps = [[*speech(1), 4711], speech(1)]
    assert run(engine) == [[*speech(1), 4711]]
    rows = engine.stream([PROMPT, PROMPT], SamplingOptions(), [0, 1])
    next(rows)
    rows.close()
    assert len(package.closed) == len(package.asked) == 4
    package.steps = [speech(1)]
    with pytest.raises(UserError, match="vLLM broke off after 7 tokens"):
        run(engine)


def test_what_is_refused(package):
    engine = VllmEngine("base", ORPHEUS, 4096)
    with pytest.raises(UserError, match="decoding 'framed' is not built for vLLM"):
        run(engine, decoding="framed")
    with pytest.raises(UserError, match="more than the model's context of 4096"):
        run(engine, max_new_tokens=4096)
    package.refuses = ValueError("\nTo serve at least one request, more KV cache is needed.\nmore")
    with pytest.raises(UserError, match="vLLM can't load 'base': To serve at least one request, more KV cache is nee"):
        VllmEngine("base", ORPHEUS, 4096)


@pytest.mark.parametrize(("rank", "prepared"), [(1, 1), (4, 8), (8, 8), (9, 16), (64, 64), (300, 320), (512, 512)])
def test_ranks_are_rounded_up_to_those_that_vllm_has(folder, rank, prepared):
    assert lora_rank(folder(rank)) == prepared


def test_adapters_that_vllm_can_t_load(tmp_path, folder):
    with pytest.raises(UserError, match="is no adapter: there is no adapter_config.json in it"):
        lora_rank(tmp_path)
    with pytest.raises(UserError, match="rank 513 and vLLM takes up to 512: merge it first"):
        lora_rank(folder(513))


def test_without_vllm_its_install_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="needs the package 'vllm', .* run  pip install -r requirements-vllm.txt"):
        VllmEngine("base", ORPHEUS, 4096)
