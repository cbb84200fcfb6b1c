"""The rules of the code base itself: import directions, format integers in one place, size, quiet imports."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path

import pytest

from orpheus import config
from orpheus.data.prepare import PrepareOptions
from orpheus.data.raw.options import RawOptions
from orpheus.evaluate.evaluate import EvaluateOptions
from orpheus.export.command import ExportOptions
from orpheus.serve.command import ServeOptions
from orpheus.serve.options import ServerOptions
from orpheus.tools.checkup import DoctorOptions
from orpheus.tools.speak import SpeakOptions

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "orpheus"

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


CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Run `lint-imports` on the package that lies in `folder`."""
    command = Path(sys.executable).with_name("lint-imports")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run([command, *config], cwd=folder, env=environment, capture_output=True, text=True)


def test_data_flows_one_way_through_the_rooms():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(CONTRACTS)} kept, 0 broken" in done.stdout


@pytest.mark.parametrize("where, line", [
    ("data/sources.py", "from orpheus.speak import guard"),  # upwards
    ("speak/speech.py", "from orpheus.export import check"),  # to a room beside it
    ("errors.py", "def f():\n    from orpheus import config"),  # inside a function is no way round
    ("codec/convolutions.py", "from orpheus.codec import snac"),  # a circle inside a room
])  # fmt: skip
def test_a_wrong_import_is_found(where, line, tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "orpheus", ignore=shutil.ignore_patterns("__pycache__", "web"))
    with (tmp_path / "orpheus" / where).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout


def test_nothing_imports_the_scripts():
    for name, path in MODULES.items():
        assert not imports_of(path) & {"inference", "orpheus_sft_unsloth"}, f"{name} imports a script"


def test_every_room_says_what_it_is():
    """In two or three lines, and holds nothing else."""
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            body = ast.parse(path.read_text(encoding="utf-8"))
            assert len(body.body) == 1 and 25 < len(ast.get_docstring(body) or "") < 300, path


def test_only_the_codec_knows_snac():
    users = {name for name, path in MODULES.items() if any(i.split(".")[0] == "snac" for i in imports_of(path))}
    assert users == {"codec.snac"}


def test_importing_any_module_loads_nothing_heavy():
    """In a fresh interpreter, all modules at once: no PyTorch, no transformers, nothing printed."""
    code = (
        "import sys, "
        + ", ".join(f"orpheus.{m}" for m in MODULES if m != "codec.convolutions")
        + """
heavy = {"torch", "transformers", "datasets", "peft", "trl", "unsloth", "snac", "soundfile", "librosa", "soxr",
         "matplotlib", "huggingface_hub", "gguf", "llama_cpp", "fastapi", "uvicorn", "pydantic",
         "prometheus_client", "av"} & set(sys.modules)
sys.exit(", ".join(sorted(heavy)) or 0)"""
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FORMAT_INTEGERS = {4096, 7, *range(128256, 128267), 128000, 128009, 156937, 156938, 156940, 12288, 16384, 24576}


def test_the_format_s_integers_live_in_tokens_alone():
    for name, path in MODULES.items():
        if name == "format.tokens":
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
                                     ExportOptions, ServeOptions, DoctorOptions])  # fmt: skip
def test_the_command_line_s_defaults_are_the_dataclass_s(options):
    from orpheus.cli import parse

    assert parse(options, []) == options()


def test_every_option_is_explained():
    for part in (config.ModelOptions, config.CorpusOptions, config.LoraOptions, config.TrainOptions,
                 config.ReadingOptions, config.SamplingOptions, config.SftOptions, config.VoiceOptions, SpeakOptions,
                 EvaluateOptions, PrepareOptions, RawOptions, ExportOptions, ServeOptions, ServerOptions,
                 DoctorOptions):  # fmt: skip
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


def test_unsloth_is_imported_before_transformers(tmp_path, base_dir):
    """With a stand-in package: what it finds imported when its own turn comes."""
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text(
        "import sys\n"
        "early = sorted({'transformers', 'peft', 'trl', 'datasets'} & set(sys.modules))\n"
        "assert not early, early\n"
        "class FastLanguageModel:\n"
        "    @staticmethod\n"
        "    def from_pretrained(model_name, max_seq_length, dtype, load_in_4bit, trust_remote_code, **more):\n"
        "        import torch\n"
        "        assert trust_remote_code is False\n"
        "        print('LOADED', max_seq_length, dtype, load_in_4bit)\n"
        "        raise ValueError('stand-in: no weights')\n"
    )
    code = ("import runpy, sys; from orpheus.model import with_unsloth; with_unsloth.need_gpu = lambda: None\n"
            "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')")  # fmt: skip
    script = ROOT / "orpheus_sft_unsloth.py"
    done = subprocess.run(
        [sys.executable, "-c", code, str(script), "--backend", "unsloth", "--base", str(base_dir), "--codec", "none"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert "LOADED 2048 torch.float32 True" in done.stdout, done.stderr
    assert done.returncode == 2 and "stand-in: no weights" in done.stderr
