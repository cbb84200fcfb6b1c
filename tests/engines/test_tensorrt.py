"""TensorRT-LLM with a stand-in for the package: what is written for it, what it is asked, how its answer is read."""

from __future__ import annotations

import json
import shutil
import sys
import types
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import soundfile
import yaml

from orpheus.config import DATA_DIR, SamplingOptions
from orpheus.engines.tensorrt import smoke as trtllm_smoke
from orpheus.engines.tensorrt.engine import BUILD, SERVE, TrtllmEngine, write_tensorrt_llm
from orpheus.errors import UserError
from orpheus.model.provenance import Provenance
from tests.support.voices import rows_of, some_codes

BASE = DATA_DIR / "tiny_orpheus"
LAYOUT = Provenance.load(BASE).layout
IDS = LAYOUT.flatten(some_codes(5)).tolist()
PROMPT = [LAYOUT.start_of_human, LAYOUT.bos, LAYOUT.start_of_speech]


@dataclass
class Output:
    token_ids_diff: list[int]
    finish_reason: str | None = None


@dataclass
class Result:
    """What `generate_async(..., streaming=True)` returns: it is iterated and is its own latest output."""

    steps: list[Output]
    finished: bool = False
    aborted: bool = False
    outputs: list[Output] = field(default_factory=list)

    async def __aiter__(self):
        for step in self.steps:
            self.outputs = [step]
            yield self
        self.finished = True

    def abort(self):
        self.aborted = True


@pytest.fixture
def package(monkeypatch):
    """A stand-in for `tensorrt_llm` that plays `steps` and keeps what it was asked."""
    fake = types.ModuleType("tensorrt_llm")
    fake.__version__ = "1.2.1"
    fake.asked, fake.results, fake.loaded = [], [], []
    fake.steps = [Output(IDS[:1]), Output(IDS[1:12]), Output(IDS[12:]), Output([], "stop")]

    class LLM:
        def __init__(self, model, **limits):
            fake.loaded.append((model, limits))

        def generate_async(self, inputs, sampling_params, streaming):
            fake.asked.append((inputs, sampling_params, streaming))
            fake.results.append(Result(fake.steps))
            return fake.results[-1]

        def shutdown(self):
            fake.loaded.pop()

    fake.LLM, fake.SamplingParams = LLM, SimpleNamespace
    monkeypatch.setitem(sys.modules, "tensorrt_llm", fake)
    return fake


def run(engine, prompts=(PROMPT,), **options):
    return rows_of(engine, prompts, SamplingOptions(**options), range(5, 5 + len(prompts)))


def test_the_files_beside_a_merged_model(tmp_path):
    folder = tmp_path / "merged"
    shutil.copytree(BASE, folder)
    assert [p.name for p in write_tensorrt_llm(folder, 2048, 4, 0.5)] == [SERVE, BUILD]
    assert yaml.safe_load((folder / SERVE).read_text()) == {
        "max_seq_len": 2048, "max_num_tokens": 2048, "max_batch_size": 4,
        "kv_cache_config": {"free_gpu_memory_fraction": 0.5, "enable_block_reuse": True},
        "cuda_graph_config": {"enable_padding": True, "max_batch_size": 4},
    }  # fmt: skip
    build = yaml.safe_load((folder / BUILD).read_text())
    assert build["build_config"] == {"max_seq_len": 2048, "max_num_tokens": 2048, "max_batch_size": 4}
    with pytest.raises(UserError, match="memory is 1.5, expected"):
        write_tensorrt_llm(folder, memory_share=1.5)


def test_what_is_no_merged_model_is_refused(tmp_path, adapter_dir):
    for folder in (tmp_path, adapter_dir):
        with pytest.raises(UserError, match="is no merged model .* export --to merged"):
            write_tensorrt_llm(folder)
    quantised = tmp_path / "quantised"
    shutil.copytree(BASE, quantised)
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    with pytest.raises(UserError, match="holds no unquantised Llama"):
        write_tensorrt_llm(quantised)


def test_it_is_asked_for_ids_and_gives_ids(package):
    engine = TrtllmEngine(BASE, LAYOUT, 2048)
    assert package.loaded == [(str(BASE), {"max_seq_len": 2048, "max_num_tokens": 2048, "max_batch_size": 8})]
    assert run(engine, [PROMPT, PROMPT], max_new_tokens=100) == [[*IDS, LAYOUT.end_of_speech]] * 2
    prompt, params, streaming = package.asked[1]
    assert prompt == PROMPT and streaming is True
    assert (params.temperature, params.top_p, params.repetition_penalty, params.seed) == (0.6, 0.95, 1.1, 6)
    assert (params.end_id, params.max_tokens, params.detokenize) == (LAYOUT.end_of_speech, 100, False)
    run(engine, temperature=0)
    assert package.asked[-1][1].top_k == 1 and package.asked[-1][1].temperature is None
    assert not any(result.aborted for result in package.results)


def test_a_row_that_ends_early_is_aborted(package):
    engine = TrtllmEngine(BASE, LAYOUT, 2048)
    assert run(engine, max_new_tokens=8) == [IDS[:8]]
    package.steps = [Output([*IDS[:7], IDS[8]]), Output(IDS)]
    assert run(engine) == [[*IDS[:7], IDS[8]]]
    assert all(result.aborted for result in package.results)
    package.steps = [Output(IDS), Output([], "cancelled")]
    with pytest.raises(UserError, match="broke off after 35 tokens \\('cancelled'\\)"):
        run(engine)


def test_without_the_package_and_without_the_backend(package, monkeypatch):
    with pytest.raises(UserError, match=r"TensorRT-LLM 1.2.1 builds no engines any more: use --backend pytorch"):
        TrtllmEngine(BASE, LAYOUT, backend="tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(UserError, match="needs the package 'tensorrt-llm', which is not installed: run  docker run"):
        TrtllmEngine(BASE, LAYOUT)


def test_the_older_way_builds_an_engine(package, monkeypatch):
    older = types.ModuleType("tensorrt_llm._tensorrt_engine")
    older.LLM, package.BuildConfig = package.LLM, dict
    monkeypatch.setitem(sys.modules, "tensorrt_llm._tensorrt_engine", older)
    engine = TrtllmEngine(BASE, LAYOUT, 1024, backend="tensorrt", batch_size=2)
    limits = {"max_seq_len": 1024, "max_num_tokens": 1024, "max_batch_size": 2}
    assert package.loaded == [(str(BASE), {"build_config": limits})]
    assert run(engine, max_new_tokens=100) == [[*IDS, LAYOUT.end_of_speech]]


def test_the_smoke_test_speaks_and_measures(package, tmp_path, capsys):
    out = tmp_path / "spoken.wav"
    options = trtllm_smoke.SmokeOptions("Hello there", "tara", BASE, out=out, device="cpu")
    trtllm_smoke.main(options)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["tokens"] == 36 and figures["finish_reason"] == "end_of_speech"
    assert 0 < figures["first_token_ms"] <= figures["first_audio_ms"]
    assert soundfile.info(out).frames == 5 * 2048 and package.loaded == []
    package.steps = [Output([LAYOUT.end_of_speech])]
    with pytest.raises(UserError, match="produced no audio"):
        trtllm_smoke.main(options)
