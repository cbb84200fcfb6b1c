"""The same greedy ids from PyTorch, from real servers through the remote engine, and from vLLM in this process.

Each needs an optional package, and is skipped with a reason where that is missing: `make test-engines` installs the
one for llama.cpp, `make test-vllm` the one for vLLM. Ten texts of the embedded voice; ids are compared to their end,
or up to the first tie: two ids whose scores in PyTorch differ by less than `TIE`, which is shown.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from orpheus.config import DATA_DIR, SamplingOptions
from orpheus.engines.remote.engine import RemoteEngine
from orpheus.engines.torch.engine import TorchEngine
from orpheus.engines.vllm.engine import VllmEngine
from orpheus.format.prompt import Renderer
from orpheus.model.base import load_base
from tests.support.voices import rows_of, save_random_adapter

TIE = 2e-3  # of a score; float32 sums in another order move scores by about 1e-4
NEW_TOKENS = 600  # more than the longest of them takes
GREEDY = SamplingOptions(temperature=0, max_new_tokens=NEW_TOKENS)
BASE = DATA_DIR / "tiny_orpheus"
CONTEXT = 2048
START_S = 400  # vLLM takes its time on a busy CPU


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed (see the Makefile)")


@pytest.fixture(scope="module")
def reference():
    return TorchEngine(load_base(str(BASE), load_in_4bit=False))


@pytest.fixture(scope="module")
def prompts(reference):
    with (DATA_DIR / "test_corpus" / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:10]
    render = Renderer(reference.loaded.tokenizer, reference.layout)
    return [render.prompt(row["text"], ("tara", "leo", "dan")[i % 3]) for i, row in enumerate(rows)]


def run(engine, prompts, sampling=GREEDY, seeds=None):
    return rows_of(engine, prompts, sampling, seeds or range(len(prompts)))


def scores(reference, ids):
    """The scores [V] of the id that follows, after the repetition penalty, from transformers' own forward pass."""
    with torch.inference_mode():
        logits = reference.loaded.model(torch.tensor([ids])).logits[0, -1].float()
    seen = torch.tensor(sorted(set(ids)))
    logits[seen] = torch.where(logits[seen] > 0, logits[seen] / GREEDY.repetition_penalty,
                               logits[seen] * GREEDY.repetition_penalty)  # fmt: skip
    return logits


def assert_same_ids(reference, prompts, ours, theirs):
    """Equal rows, or a tie where they part; prints how far they go together."""
    whole = 0
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        if a == b:
            whole += 1
            continue
        at = next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
        left = scores(reference, [*prompt, *a[:at]])
        gap = float(left[a[at]] - left[b[at]])
        print(f"a tie at {at} of {len(a)}: ids {a[at]} and {b[at]}, whose scores differ by {gap:.1e}")
        assert abs(gap) < TIE
    assert sum(row[-1] == reference.layout.end_of_speech for row in ours) > len(ours) / 2  # the ends are compared too
    print(f"{whole} of {len(ours)} rows are the same to the end, {sum(map(len, ours))} ids in all")


@contextmanager
def serving(*command: str, **environment: str):
    """Run a server on a free port of this machine until the end; yields its address. Its log is shown if it fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = (*command, "--host", "127.0.0.1", "--port", str(port))
    with tempfile.TemporaryFile() as log:  # a pipe that nobody reads would fill up and stop the server
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | environment)
        deadline = time.monotonic() + START_S
        try:
            while not answers(f"{url}/v1/models"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail(f"the server did not start: {log.read().decode()[-3000:]}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def answers(url: str) -> bool:
    try:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
    except OSError:
        return False
    return True


# ---- llama-cpp-python ----


@pytest.fixture(scope="module")
def gguf(tmp_path_factory) -> Path:
    export = pytest.importorskip("orpheus.export.command", reason="there is no exporter to write a .gguf file")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export.main(export.ExportOptions(to="gguf", type="F32", preset="tiny", out=path, device="cpu", check=False))
    return path


@pytest.fixture(scope="module")
def llama_server(gguf, reference):
    command = (sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--n_threads", "1")
    window = ("--n_ctx", str(CONTEXT), "--last_n_tokens_size", str(CONTEXT))  # else repetitions among the last 64 only
    cache_in_32_bit = ("--type_k", "0", "--type_v", "0")
    with serving(*command, *window, *cache_in_32_bit) as url:
        yield RemoteEngine(url, reference.layout, CONTEXT, tokenizer=reference.loaded.tokenizer)


@pytest.mark.engines
@needs("llama_cpp")
@needs("starlette_context")
def test_llama_cpp_python_s_server_gives_pytorch_s_ids(llama_server, reference, prompts):
    assert llama_server.kind.name == "llama-cpp-python" and llama_server.sends_text  # it takes no ids
    assert_same_ids(reference, prompts, run(reference, prompts), run(llama_server, prompts))


@pytest.mark.engines
@needs("llama_cpp")
@needs("starlette_context")
def test_it_goes_on_after_a_row_that_was_given_up(llama_server, reference, prompts):
    rows = llama_server.stream(prompts[:1], GREEDY, [0])
    first = [next(rows)[1] for _ in range(3)]
    rows.close()
    again = run(llama_server, prompts[:1])[0]
    assert again[:3] == first and len(again) > 50


@pytest.mark.engines
@needs("llama_cpp")
@needs("starlette_context")
def test_the_same_seed_gives_the_same_ids(llama_server, prompts):
    hot = SamplingOptions(temperature=2.5, top_p=1.0, max_new_tokens=70)  # the embedded base is sure
    drawn = [run(llama_server, prompts[:1], hot, [seed])[0] for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.engines
@pytest.mark.skipif(shutil.which("llama-server") is None, reason="llama-server is not on the PATH")
def test_llama_server_gives_pytorch_s_ids(gguf, reference, prompts):
    """Ids both ways, four rows at once. The cache is in 32 bit, so that ties are rare."""
    options = ("-np", "4", "-c", str(4 * CONTEXT), "-t", "1", "-ctk", "f32", "-ctv", "f32", "-fa", "off", "--no-webui")
    with serving("llama-server", "-m", str(gguf), *options) as url:
        engine = RemoteEngine(url, reference.layout, CONTEXT)
        assert engine.kind.name == "llama-server" and not engine.sends_text
        assert_same_ids(reference, prompts, run(reference, prompts), run(engine, prompts))
        drawn = [run(engine, prompts[:1], SamplingOptions(max_new_tokens=70), [seed])[0] for seed in (5, 5, 6)]
        assert drawn[0] == drawn[1] != drawn[2]
        engine.close()


# ---- vLLM: its server, and in this process ----

ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.fixture(scope="module")
def vllm_server(reference):
    command = (
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(BASE),
        "--served-model-name",
        "tiny",
    )
    options = ("--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT))
    with serving(*command, *options, **ON_CPU) as url:
        yield RemoteEngine(url, reference.layout, 8 * CONTEXT, timeout_s=120)


@pytest.mark.vllm
@needs("vllm")
def test_vllm_s_server_gives_pytorch_s_ids(vllm_server, reference, prompts):
    assert (vllm_server.kind.name, vllm_server.model, vllm_server.sends_text) == ("vLLM", "tiny", False)
    assert vllm_server.context_length == CONTEXT  # what the server says, not what we hoped
    assert_same_ids(reference, prompts, run(reference, prompts), run(vllm_server, prompts))


@pytest.mark.vllm
@needs("vllm")
def test_seeds_are_each_row_s_own_on_vllm_s_server(vllm_server, prompts):
    both = run(vllm_server, prompts[:2], SamplingOptions(max_new_tokens=70), [5, 6])
    assert run(vllm_server, prompts[1:2], SamplingOptions(max_new_tokens=70), [6]) == both[1:]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A random adapter, weak enough for the embedded base to speak on."""
    return save_random_adapter(tmp_path_factory.mktemp("adapter"), BASE, DATA_DIR / "tiny_codec", std=0.01)


@pytest.fixture(scope="module")
def vllm_engine(reference, adapter):
    patch = pytest.MonkeyPatch()
    for name, value in ON_CPU.items():
        patch.setenv(name, value)
    engine = VllmEngine(str(BASE), reference.layout, CONTEXT, adapter, dtype="float32", enforce_eager=True)
    yield engine
    engine.close()
    patch.undo()


@pytest.mark.vllm
@needs("vllm")
def test_vllm_with_an_adapter_gives_pytorch_s_ids(vllm_engine, adapter, prompts):
    from orpheus.model.adapter import attach_adapter, merge

    adapted = TorchEngine(merge(attach_adapter(load_base(str(BASE), load_in_4bit=False), adapter)))
    ours = run(adapted, prompts)
    assert_same_ids(adapted, prompts, ours, run(vllm_engine, prompts))
    vllm_engine._lora, lora = None, vllm_engine._lora  # without it, the base speaks
    assert run(vllm_engine, prompts[:2]) != ours[:2]
    vllm_engine._lora = lora


@pytest.mark.vllm
@needs("vllm")
def test_vllm_goes_on_after_a_row_that_was_given_up(vllm_engine, prompts):
    rows = vllm_engine.stream(prompts, GREEDY, range(10))
    next(rows)
    rows.close()
    one = run(vllm_engine, prompts[:1], SamplingOptions(max_new_tokens=30), [3])
    assert run(vllm_engine, prompts[:2], SamplingOptions(max_new_tokens=30), [3, 4])[:1] == one
