"""The project and the packages it stands on still fit: names, signatures, keywords, the order of imports. No GPU.

Unsloth can't be imported without a GPU: its source is read instead, where it is installed or $UNSLOTH_SOURCE names it.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.support.contracts import (
    HANDED_ON,
    METHODS,
    UNSLOTH_CALLS,
    UNSLOTH_SIGNATURES,
    UNSLOTH_SOURCE_SAYS,
    UNSLOTH_VERSIONS,
    function_in,
    parameters,
    recorded,
    unsloth_source,
    unsloth_versions,
)

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*(ROOT / "orpheus").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), ROOT / "orpheus_sft_unsloth.py"]
PACKAGES = ("unsloth", "transformers", "peft", "trl", "bitsandbytes")


# ---- what the code calls ----


def calls() -> dict[str, set[str]]:
    """'package.name.method' -> keywords, for every call of something that was imported from PACKAGES."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
                names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
            elif isinstance(node, ast.Import):
                names |= {a.asname or a.name: a.name for a in node.names if a.name.split(".")[0] in PACKAGES}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                head, *rest = function.split(".")
                if head in names and re.fullmatch(r"[\w.]+", function):
                    keywords = {k.arg for k in node.keywords if k.arg}
                    found.setdefault(".".join([names[head], *rest]), set()).update(keywords)
    return found


CALLS = calls()


def resolve(name: str) -> Any:
    """The object by its dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def test_the_calls_are_found():
    assert {name.split(".")[0] for name in CALLS} >= {"unsloth", "transformers", "peft", "trl"}
    assert "use_exact_model_name" in CALLS["unsloth.FastLanguageModel.from_pretrained"]
    assert "bnb_4bit_use_double_quant" in CALLS["transformers.BitsAndBytesConfig"]


@pytest.mark.parametrize("name", sorted(n for n in CALLS if not n.startswith("unsloth")))
def test_installed_packages_take_what_they_are_given(name):
    known = inspect.signature(resolve(name)).parameters
    rest = CALLS[name] - set(known)
    if not rest:
        return
    assert any(p.kind is p.VAR_KEYWORD for p in known.values()), f"{name} takes no {', '.join(sorted(rest))}"
    assert name in HANDED_ON, f"{name} takes any keyword: say in HANDED_ON who reads {', '.join(sorted(rest))}"
    reader = resolve(HANDED_ON[name])
    lost = {k for k in rest - set(inspect.signature(reader).parameters) if f'"{k}"' not in inspect.getsource(reader)}
    assert not lost, f"{HANDED_ON[name]} no longer reads {', '.join(sorted(lost))}"


@pytest.mark.parametrize("name", METHODS)
def test_methods_have_the_parameters(name):
    known = inspect.signature(resolve(name)).parameters
    assert set(METHODS[name]) <= set(known), f"{name} has {', '.join(known)}"


def test_the_trainer_s_options_exist():
    from trl import SFTConfig

    tree = ast.parse((ROOT / "orpheus" / "training" / "trainer.py").read_text(encoding="utf-8"))
    (given,) = (
        {k.arg for k in node.value.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "arguments"
    )
    assert len(given) > 25 and given <= set(inspect.signature(SFTConfig).parameters)


def test_what_is_overridden_and_switched_off_exists():
    import bitsandbytes
    from transformers.trainer_callback import TrainerCallback
    from trl import SFTTrainer

    assert issubclass(SFTTrainer, resolve("transformers.Trainer"))
    assert "support_avx512bf16_for_cpu" in inspect.getsource(bitsandbytes.nn.Linear4bit)
    for event in ("on_train_begin", "on_step_end", "on_log", "on_train_end"):
        assert hasattr(TrainerCallback, event)


# ---- Unsloth, unseen ----


def accepts(call: tuple[str, str], keywords: set[str]) -> set[str]:
    """The keywords that a recorded signature has no name for (its **kwargs would swallow a misspelt one)."""
    return keywords - set(recorded(call))


@pytest.mark.parametrize("name", sorted(n for n in CALLS if n.startswith("unsloth")))
def test_unsloth_is_called_as_its_recorded_signature_allows(name):
    call = UNSLOTH_CALLS[name.removeprefix("unsloth.")]
    assert not accepts(call, CALLS[name])


@pytest.fixture(scope="module")
def source() -> Path:
    folder = unsloth_source()
    if folder is None or not (folder / "unsloth").is_dir():
        pytest.skip("Unsloth is not installed and UNSLOTH_SOURCE is not set: its source can't be read")
    return folder


@pytest.mark.parametrize("call", UNSLOTH_SIGNATURES, ids=lambda call: call[1])
def test_recorded_signatures_are_unsloth_s(source, call):
    file, name = call
    actual = parameters(function_in((source / file).read_text(encoding="utf-8"), name))
    written = recorded(call)
    assert list(actual) == list(written)
    for parameter, default in written.items():
        if parameter in actual and default not in (None, "None"):
            assert actual[parameter] == default, f"{name}: {parameter} was {default}, is {actual[parameter]}"
    used = set().union(*(keywords for n, keywords in CALLS.items() if UNSLOTH_CALLS.get(n[8:]) == call))
    assert used <= set(actual), f"{name} no longer has {', '.join(sorted(used - set(actual)))}"


@pytest.mark.parametrize("file, text", UNSLOTH_SOURCE_SAYS)
def test_unsloth_still_does_what_the_code_counts_on(source, file, text):
    assert text in (source / file).read_text(encoding="utf-8"), f"{file} no longer has {text}"


def test_exactly_one_pair_of_versions_is_asked_for_and_read(source):
    """Others load other things without a word; and the pair was read, recorded and run together."""
    exact, listed = pins("constraints.txt"), {normal(r.name): str(r.specifier) for r in ranges("requirements.txt")}
    for name, version in UNSLOTH_VERSIONS.items():
        assert (exact[name], listed[name]) == (version, f"=={version}")
    assert unsloth_versions(source) == UNSLOTH_VERSIONS


def test_unsloth_s_demands_meet_the_requirements(source):
    """Each range of requirements.txt holds a version that Unsloth's own metadata allows: the one that was tested."""
    from importlib.metadata import distributions

    ours = pins("constraints.txt")
    wanted = [Requirement(r) for d in distributions(path=[str(source)]) if d.metadata["Name"].startswith("unsloth")
              for r in d.requires or [] if "extra ==" not in r]  # fmt: skip
    assert wanted
    for requirement in wanted:
        if (requirement.marker is None or requirement.marker.evaluate()) and normal(requirement.name) in ours:
            version = ours[normal(requirement.name)]
            assert requirement.specifier.contains(version), f"Unsloth wants {requirement}, constraints say {version}"


# ---- versions ----


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def pins(file: str) -> dict[str, str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return {normal(name): version for name, version in (line.split("==") for line in lines if line)}


def ranges(file: str) -> list[Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-cpu.txt", "requirements-dev.txt"])
def test_constraints_are_within_the_requirements(file):
    exact = pins("constraints.txt")
    for requirement in ranges(file):
        assert normal(requirement.name) in exact, f"constraints.txt lacks {requirement.name}"
        assert requirement.specifier.contains(exact[normal(requirement.name)]), requirement


def test_two_ranges_are_never_loosened():
    written = {r.name: str(r.specifier) for r in ranges("requirements.txt")}
    assert set(written["datasets"].split(",")) == {">=3.4.1", "<4.0.0"} and written["huggingface_hub"] == ">=0.34.0"


# ---- the order of imports ----

STAND_IN = """
import sys
early = sorted({{"transformers", "peft", "trl", "datasets", "accelerate"}} & set(sys.modules))
assert not early, f"imported before unsloth: {{early}}"
print("UNSLOTH IMPORTED FIRST")


class FastLanguageModel:
    @staticmethod
    def from_pretrained({from_pretrained}):
        assert not kwargs and not args, (args, kwargs)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
        assert not trust_remote_code
        assert use_exact_model_name and isinstance(max_seq_length, int) and isinstance(dtype, torch.dtype)
        print("LOADED", max_seq_length, dtype, load_in_4bit)
        small = dict(quantization_config=BitsAndBytesConfig(load_in_4bit=True)) if load_in_4bit else {{}}
        model = AutoModelForCausalLM.from_pretrained(model_name, dtype=dtype, **small)
        return model, AutoTokenizer.from_pretrained(model_name)

    @staticmethod
    def get_peft_model({get_peft_model}):
        assert not kwargs, kwargs
        from peft import LoraConfig, get_peft_model
        assert use_gradient_checkpointing in ("unsloth", True, False) and type(random_state) is int
        print("LORA", r, lora_alpha, use_gradient_checkpointing, random_state)
        return get_peft_model(model, LoraConfig(r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, bias=bias,
                                                target_modules=target_modules, use_rslora=use_rslora))
"""

DRIVE = """
import sys
from dataclasses import replace
from pathlib import Path
from orpheus.model import with_unsloth
from orpheus.model.adapter import add_lora, save_adapter
from orpheus.config import LoraOptions, SftOptions, filled
from orpheus.model.base import load_base
from orpheus.model.provenance import Provenance
from orpheus.training.trainer import train

with_unsloth.need_gpu = lambda: None
loaded = load_base(sys.argv[1], backend="unsloth", load_in_4bit=True, max_seq_length=512)
assert loaded.backend == "unsloth"
loaded = add_lora(loaded, LoraOptions(r=4), alpha=8, gradient_checkpointing=True, seed=7)

from benchmarks.smoke.data import sequences
from orpheus.format.prompt import Renderer

data = sequences(Renderer(loaded.tokenizer, loaded.layout), [0.5, 0.7], most=512)
options = replace(filled(SftOptions(), False).train, max_steps=1, batch_size=2, eval_every=0, save_every=0)
summary = train(loaded, data, data, options, Path(sys.argv[2]), {})
save_adapter(loaded, Path(sys.argv[2]), Provenance(base=loaded.base, codec="none", layout=loaded.layout))
print("TRAINED", summary.steps, len(summary.validation_by_slot))
"""


def test_unsloth_is_imported_first_and_given_what_it_takes(tmp_path, base_dir):
    """Loading, LoRA, a training step and saving, with a stand-in that has Unsloth's signatures and peft's insides."""
    functions = {name.partition(".")[2]: UNSLOTH_SIGNATURES[call] for name, call in UNSLOTH_CALLS.items()}
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text(STAND_IN.format(**functions))
    done = subprocess.run(
        [sys.executable, "-c", DRIVE, str(base_dir), str(tmp_path / "adapter")],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    for words in ("UNSLOTH IMPORTED FIRST", "LOADED 512 torch.float32 True", "LORA 4 8 unsloth 7", "TRAINED 1 7"):
        assert words in done.stdout
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
