"""The rules of the code base itself: import directions, format integers in one place, size, quiet imports."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from inference import SpeakOptions
from orpheus import config
from orpheus.evaluate import EvaluateOptions
from orpheus.export import ExportOptions
from orpheus.prepare import PrepareOptions
from orpheus.serve import ServeOptions
from orpheus.serving.options import ServerOptions

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "orpheus"

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "tokens": {"errors"},
    "config": {"errors"},
    "audio": {"errors"},
    "cli": {"errors"},
    "hub": {"config", "errors"},
    "prompt": {"errors", "tokens"},
    "_snac": set(),
    "codec": {"_snac", "audio", "errors", "hub", "tokens"},
    "provenance": {"audio", "errors", "tokens"},
    "sources": {"audio", "config", "errors", "hub"},
    "encoding": {"audio", "codec", "errors", "sources", "tokens"},
    "corpus": {"audio", "codec", "config", "encoding", "errors", "guard", "prompt", "sources", "tokens"},
    "launch": set(),
    "page": set(),
    "model": {"config", "errors", "hub", "launch", "provenance", "tokens"},
    "batches": {"prompt"},
    "losses": {"prompt"},
    "checkpoints": {"errors", "provenance"},
    "adapter": {"config", "errors", "model", "provenance"},
    "train": {"adapter", "audio", "batches", "checkpoints", "config", "errors", "launch", "losses", "model", "prompt",
              "provenance", "tokens"},
    "engines.base": {"config", "errors", "tokens"},
    "engines.background": set(),
    "engines.token_text": {"tokens"},
    "engines.servers": {"config", "tokens"},
    "engines.reply": {"engines.servers", "engines.token_text", "errors", "tokens"},
    "engines.remote_engine": {"config", "engines.background", "engines.base", "engines.reply", "engines.servers",
                              "errors", "tokens"},
    "engines.vllm_engine": {"config", "engines.background", "engines.base", "errors", "tokens"},
    "engines.trtllm": {"config", "engines.background", "engines.base", "errors", "tokens"},
    "engines.trtllm_smoke": {"audio", "cli", "codec", "config", "engines.base", "engines.trtllm", "errors", "model",
                             "prompt", "provenance", "tokens"},
    "engines.sampling": {"config"},
    "engines.llama": set(),
    "engines.cpu": set(),
    "engines.transformers_decoder": {"engines.llama"},
    "engines.batch": {"config", "engines.sampling", "tokens"},
    "engines.frames": {"engines.batch", "tokens"},
    "engines.torch_engine": {"config", "engines.base", "engines.batch", "engines.cpu", "engines.frames",
                             "engines.llama", "engines.transformers_decoder", "model", "tokens"},
    "engines.speculative": {"config", "engines.base", "engines.cpu", "engines.llama", "engines.sampling",
                            "engines.torch_engine", "errors", "model", "tokens"},
    "engines.slots": {"config", "engines.batch", "engines.frames", "engines.sampling", "engines.torch_engine",
                      "tokens"},
    "engines.shared": {"config", "engines.base", "engines.llama", "engines.slots", "engines.torch_engine", "errors",
                       "tokens"},
    "engines.llamacpp_model": {"errors", "provenance", "tokens"},
    "engines.llamacpp_engine": {"config", "engines.base", "engines.batch", "engines.llama", "engines.llamacpp_model",
                                "tokens"},
    "engines.choose": {"adapter", "config", "engines.base", "engines.llamacpp_engine", "engines.llamacpp_model",
                       "engines.remote_engine", "engines.speculative", "engines.torch_engine", "engines.vllm_engine",
                       "errors", "hub", "model", "provenance", "tokens"},
    "gguf_file": {"engines.llamacpp_model", "errors", "model", "provenance"},
    "export_check": {"config", "engines.base", "errors", "tokens"},
    "export": {"adapter", "config", "engines.choose", "engines.llamacpp_engine", "engines.llamacpp_model",
               "engines.torch_engine", "engines.trtllm", "errors", "export_check", "gguf_file", "model", "prompt",
               "provenance"},
    "speech": {"audio", "errors", "provenance", "tokens"},
    "pieces": {"errors", "prompt"},
    "guard": {"audio", "codec", "pieces", "prompt", "tokens"},
    "utterance": {"audio", "codec", "config", "errors", "guard", "speech", "tokens"},
    "joins": {"audio"},
    "schedule": {"audio"},
    "reading": {"audio", "joins", "speech", "tokens", "utterance"},
    "inference": {"codec", "config", "engines.base", "engines.choose", "errors", "guard", "model", "pieces", "prompt",
                  "provenance", "reading", "speech", "utterance"},
    "aloud": {"audio", "config", "errors", "inference", "provenance", "reading", "schedule"},
    "encoders": {"audio", "errors"},
    "serving.options": {"config", "errors"},
    "serving.problems": set(),
    "serving.requests": {"encoders", "serving.problems"},
    "serving.admission": {"serving.problems"},
    "serving.counts": {"reading", "serving.admission"},
    "serving.answers": {"encoders", "errors", "reading", "schedule", "serving.admission", "serving.counts",
                        "serving.problems", "serving.requests", "utterance"},
    "serving.gate": {"serving.answers", "serving.options", "serving.problems"},
    "server": {"config", "encoders", "errors", "page", "prompt", "serving.admission", "serving.answers",
               "serving.counts", "serving.gate", "serving.options", "serving.problems", "serving.requests"},
    "serve": {"config", "engines.shared", "errors", "inference", "server", "serving.answers", "serving.options"},
    "upload": {"errors", "hub"},
    "prepare": {"codec", "config", "corpus", "encoding", "launch", "model", "prompt", "tokens"},
    "doctor": {"config"},
    "bench": {"errors"},
    "__main__": {"bench", "cli", "errors"},
    "detect": {"audio", "errors"},
    "metrics": {"audio", "errors", "prompt"},
    "recognise": {"audio", "config", "errors", "metrics"},
    "report": {"audio", "metrics", "provenance"},
    "evaluate": {"adapter", "audio", "config", "corpus", "detect", "errors", "inference", "metrics", "model",
                 "prompt", "provenance", "recognise", "report", "sources", "speech", "tokens"},
}  # fmt: skip
"""Which module may import which: data flows one way. Nothing imports the two scripts."""

MODULES = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")
           if p.name != "__init__.py"}  # fmt: skip


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_imports_follow_the_table():
    assert set(MODULES) == set(ALLOWED)
    for name, path in MODULES.items():
        inside = {i.removeprefix("orpheus.") for i in imports_of(path) if i.startswith("orpheus.")} & set(MODULES)
        assert inside <= ALLOWED[name], f"{name} may not import {inside - ALLOWED[name]}"
        assert not imports_of(path) & {"inference", "orpheus_sft_unsloth"}, f"{name} imports a script"


def test_the_table_has_no_cycle():
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [m for m, needs in ALLOWED.items() if m not in order and needs <= set(order)]
        assert ready, f"a cycle among {set(ALLOWED) - set(order)}"
        order += ready


def test_only_the_codec_knows_snac():
    users = {name for name, path in MODULES.items() if any(i.split(".")[0] == "snac" for i in imports_of(path))}
    assert users == {"codec"}


def test_importing_any_module_loads_nothing_heavy():
    """In a fresh interpreter, all modules at once: no PyTorch, no transformers, nothing printed."""
    code = (
        "import sys, "
        + ", ".join(f"orpheus.{m}" for m in MODULES if m != "_snac")
        + """
heavy = {"torch", "transformers", "datasets", "peft", "trl", "unsloth", "snac", "soundfile", "librosa", "soxr",
         "matplotlib", "huggingface_hub", "tyro", "gguf", "llama_cpp", "fastapi", "uvicorn", "pydantic",
         "prometheus_client", "av"} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)"""
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FORMAT_INTEGERS = {4096, 7, *range(128256, 128267), 128000, 128009, 156937, 156938, 156940, 12288, 16384, 24576}


def test_the_format_s_integers_live_in_tokens_alone():
    for name, path in MODULES.items():
        if name == "tokens":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and type(node.value) is int and node.value in FORMAT_INTEGERS:
                line = path.read_text(encoding="utf-8").splitlines()[node.lineno - 1].strip()
                assert "stem[7:]" in line, f"{name}:{node.lineno} has {node.value}: {line}"


def test_files_are_short_and_scripts_shorter():
    for path in [
        p for folder in (PACKAGE, ROOT / "tests", ROOT / "data", ROOT / "benchmarks") for p in folder.rglob("*.py")
    ]:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
    for script in ("inference.py", "orpheus_sft_unsloth.py"):
        assert len((ROOT / script).read_text(encoding="utf-8").splitlines()) <= 120, script


@pytest.mark.parametrize("options", [config.SftOptions, config.SamplingOptions, config.ReadingOptions,
                                     config.TrainOptions, SpeakOptions, EvaluateOptions, PrepareOptions,
                                     ExportOptions, ServeOptions])  # fmt: skip
def test_the_command_line_s_defaults_are_the_dataclass_s(options):
    from orpheus.cli import parse

    assert parse(options, []) == options()


def test_every_option_is_explained():
    for part in (config.ModelOptions, config.CorpusOptions, config.LoraOptions, config.TrainOptions,
                 config.ReadingOptions, config.SamplingOptions, config.SftOptions, config.VoiceOptions, SpeakOptions,
                 EvaluateOptions, PrepareOptions, ExportOptions, ServeOptions, ServerOptions):  # fmt: skip
        source = ast.parse(Path(inspect.getfile(part)).read_text(encoding="utf-8"))
        body = next(n for n in source.body if isinstance(n, ast.ClassDef) and n.name == part.__name__).body
        explained = {
            node.target.id
            for node, after in pairwise(body)
            if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr)
        }
        assert explained == {f.name for f in dataclasses.fields(part) if not is_group(f)}


def is_group(field: dataclasses.Field) -> bool:
    """Whether an option is a dataclass of options, which explains itself."""
    return field.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(field.default_factory())


def test_presets_fill_every_open_option():
    for has_gpu in (False, True):
        full = config.filled(config.SftOptions(), has_gpu)
        for part in (full.model, full.corpus, full.lora, full.train):
            empty = [f.name for f in dataclasses.fields(part) if getattr(part, f.name) is None]
            assert empty in ([], ["hub_repo_id"])
        assert full.model.preset == ("orpheus-3b" if has_gpu else "tiny")
        assert full.train.push_to_hub is False  # nothing is uploaded unless asked
    gpu = config.filled(config.SftOptions(), True)
    assert (gpu.corpus.dataset, gpu.lora.r, gpu.lora.lora_alpha) == ("MrDragonFox/Elise", 64, 64)
    assert (gpu.train.batch_size, gpu.train.gradient_accumulation, gpu.train.learning_rate) == (1, 4, 2e-4)
    assert gpu.model.load_in_4bit and gpu.train.seed == 3407


def requirements(name: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return {re.split(r"[<>=]", line)[0].replace("-", "_"): line for line in lines if line}


def test_the_demanded_requirements():
    gpu, cpu = requirements("requirements.txt"), requirements("requirements-cpu.txt")
    asked = {"unsloth", "transformers", "peft", "trl", "datasets", "sentencepiece", "protobuf", "huggingface_hub",
             "hf_transfer", "snac", "soundfile", "librosa", "torchaudio"}  # fmt: skip
    assert asked <= set(gpu)
    assert gpu["datasets"] == "datasets>=3.4.1,<4.0.0" and gpu["huggingface_hub"] == "huggingface_hub>=0.34.0"
    assert set(gpu) - set(cpu) == {"unsloth", "torchaudio"}  # both need CUDA libraries
    assert {n: line for n, line in cpu.items() if n != "torch"} == {n: gpu[n] for n in cpu if n != "torch"}


def test_the_package_takes_its_metadata_from_these_files():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in PACKAGE.rglob("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == packages


@pytest.mark.slow
def test_unsloth_is_imported_before_transformers(tmp_path, base_dir):
    """With a stand-in package: what it finds imported when its own turn comes."""
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text(
        "import sys\n"
        "early = sorted({'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules))\n"
        "assert not early, early\n"
        "class FastLanguageModel:\n"
        "    @staticmethod\n"
        "    def from_pretrained(model_name, max_seq_length, dtype, load_in_4bit, use_exact_model_name):\n"
        "        import torch\n"
        "        print('LOADED', max_seq_length, dtype, load_in_4bit)\n"
        "        raise ValueError('stand-in: no weights')\n"
    )
    script = ROOT / "orpheus_sft_unsloth.py"
    done = subprocess.run(
        [sys.executable, str(script), "--backend", "unsloth", "--base", str(base_dir)],
        cwd=tmp_path, env={**__import__("os").environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "LOADED 2048 torch.float32 True" in done.stdout, done.stderr
    assert done.returncode == 2 and "stand-in: no weights" in done.stderr
