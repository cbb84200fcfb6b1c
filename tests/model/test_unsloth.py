"""Unsloth's own code trains our adapters, on a stand-in for the GPU (make test-unsloth).

Each run is a process of its own: Unsloth replaces parts of transformers, peft and trl for good. What no stand-in can
show (compiled kernels, bitsandbytes' CUDA library, memory, speed) stands in docs/measured.md.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import build_speaking_base, save_base
from tests.support.unsloth_run import Run, prompt_of

pytestmark = [
    pytest.mark.unsloth,
    pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="Unsloth is not here: make test-unsloth"),
]
ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


class Trainings:
    """Runs of `tests.support.unsloth_run` in one folder, on one base, from the same first weights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, save_base(folder / "base", initializer_range=0.15)
        self.done: dict[str, dict] = {}

    def __call__(self, name: str, backend: str, **options) -> dict:
        if name not in self.done:
            out, base = options.pop("out", name), options.pop("base", self.base)
            first = self.folder / f"first_{base.name}"
            run = Run(backend, str(base), str(self.folder / out), str(first), **options)
            said = python("-m", "tests.support.unsloth_run", json.dumps(vars(run)), cwd=self.folder)
            self.done[name] = json.loads(said.splitlines()[-1])
            print(name, {k: self.done[name][k] for k in ("losses", "gradients", "validation")})
        return self.done[name]


def python(*arguments: str, cwd: Path, code: int = 0) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def trainings(tmp_path_factory) -> Trainings:
    return Trainings(tmp_path_factory.mktemp("unsloth"))


BOTH = dict(rows=2, accumulation=2)


@pytest.fixture(scope="module")
def ours(trainings) -> dict:
    return trainings("ours", "transformers", **BOTH)


@pytest.fixture(scope="module")
def theirs(trainings) -> dict:
    return trainings("theirs", "unsloth", **BOTH)


def logits_of(base: Path, adapter: Path):
    """The logits [T, V] of one clip, by plain peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(300, 340)[None]).logits[0]


def test_unsloth_s_rewritten_trainer_trains(theirs, trainings):
    assert any(name.endswith("UnslothSFTTrainer") for name in theirs["trainer"])
    assert not theirs["in_4bit"]
    assert not (trainings.folder / "unsloth_compiled_cache").exists(), "Unsloth writes beside the user's files"


def test_in_32_bit_it_is_the_same_training(ours, theirs, trainings):
    """Two clips a step, two steps an update."""
    assert theirs["losses"] == pytest.approx(ours["losses"], abs=1e-4)
    assert theirs["gradients"] == pytest.approx(ours["gradients"], rel=1e-4)
    assert theirs["validation"] == pytest.approx(ours["validation"], abs=1e-4)
    assert theirs["slots"] == pytest.approx(ours["slots"], abs=1e-4)
    apart = logits_of(trainings.base, trainings.folder / "theirs") - logits_of(
        trainings.base, trainings.folder / "ours"
    )
    assert float(apart.abs().max()) < 1e-4
    assert ours["losses"][-1] != ours["losses"][0]


def test_the_adapter_is_loaded_and_merged_by_our_own_code(theirs, trainings):
    from orpheus.model.adapter import attach_adapter, merge
    from orpheus.model.base import load_base

    loaded = attach_adapter(load_base(str(trainings.base), load_in_4bit=False), trainings.folder / "theirs")
    ids = torch_ids()
    attached = loaded.model(input_ids=ids).logits[0]
    assert float((attached - logits_of(trainings.base, trainings.folder / "theirs")).abs().max()) < 1e-5
    assert float((merge(loaded).model(input_ids=ids).logits[0] - attached).abs().max()) < 1e-4


def torch_ids():
    import torch

    torch.set_grad_enabled(False)
    return torch.arange(300, 340)[None]


def test_unsloth_s_generate_gives_our_engine_s_ids(trainings, tokenizer, layout):
    """The likeliest ids of a random base that keeps to the slots, under an adapter that Unsloth trained."""
    from orpheus.config import SamplingOptions
    from orpheus.engines.torch.engine import TorchEngine
    from orpheus.model.adapter import attach_adapter, merge
    from orpheus.model.base import load_base

    base = trainings.folder / "speaking"
    build_speaking_base(layout, ends=0).save_pretrained(base)
    tokenizer.save_pretrained(base)
    theirs = trainings("spoken", "unsloth", base=base, steps=1, generate=24)
    loaded = merge(attach_adapter(load_base(str(base), load_in_4bit=False), trainings.folder / "spoken"))
    likeliest = SamplingOptions(temperature=0.0, repetition_penalty=1.0, max_new_tokens=24)
    ids = [i for _, i in TorchEngine(loaded).stream([prompt_of(loaded)], likeliest, [0])]
    assert theirs["generated"] == ids and len(set(ids)) > 7


def test_in_4_bit_with_unsloth_s_checkpointing(trainings):
    options = dict(in_4bit=True, checkpointing=True, steps=3)
    ours, theirs = trainings("ours4", "transformers", **options), trainings("theirs4", "unsloth", **options)
    assert theirs["in_4bit"] and "Linear4bit" in theirs["layers"]
    assert theirs["losses"] == pytest.approx(ours["losses"], abs=1e-4)
    assert theirs["gradients"] == pytest.approx(ours["gradients"], rel=1e-5)
    assert theirs["validation"] == pytest.approx(ours["validation"], abs=1e-4)


def test_in_fp16_as_on_a_t4_it_trains_as_in_32_bit(trainings, ours):
    """The fused LoRA kernels run. Not bf16: the kernels' interpreter has no bf16 of its own and gives NaN."""
    half = trainings("float16", "unsloth", **BOTH, steps=2, dtype="float16")
    assert half["losses"] == pytest.approx(ours["losses"][:2], abs=0.01)
    assert half["losses"] != ours["losses"][:2]


def test_an_interrupted_training_goes_on_to_the_same_end(trainings, theirs):
    part = trainings("part", "unsloth", **BOTH, interrupt=1)
    assert part["interrupted"] and len(part["losses"]) == 2
    rest = trainings("rest", "unsloth", **BOTH, resume=True, out="part")
    assert not rest["interrupted"]
    assert rest["losses"] == theirs["losses"] and rest["validation"][1] == theirs["validation"][1]
    same = logits_of(trainings.base, trainings.folder / "part") - logits_of(trainings.base, trainings.folder / "theirs")
    assert float(same.abs().max()) == 0


PROGRAM = """
import runpy, sys
from tests.support import stand_in_gpu
stand_in_gpu.install()
import os
from orpheus.model.with_unsloth import SETTINGS
os.environ.update(SETTINGS)
stand_in_gpu.after_import()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_whole_program(tmp_path, tokenizer, layout):
    """From recordings to WAVs, as a user with a GPU starts it, on a base that keeps to the slots."""
    import soundfile

    from tests.support.codec_fixtures import speech_like
    from tests.support.voices import save_codec

    base, codec, clips = tmp_path / "base", save_codec(tmp_path / "codec"), tmp_path / "clips"
    build_speaking_base(layout).save_pretrained(base)
    tokenizer.save_pretrained(base)
    clips.mkdir()
    for i in range(6):
        soundfile.write(clips / f"{i}.wav", speech_like(0.3, seed=i), 24000)
    (clips / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.wav,Clip {i}.\n" for i in range(6)))
    said = python("-c", PROGRAM, str(ROOT / "orpheus_sft_unsloth.py"), "--backend", "unsloth", "--base",
                  str(base), "--codec", str(codec), "--dataset", str(clips), "--max-steps", "2",
                  "--max-seq-length", "512", "--batch-size", "1", "--r", "4", cwd=tmp_path)  # fmt: skip
    assert "2 steps" in said
    made = json.loads((tmp_path / "lora_model" / "orpheus.json").read_text())
    assert made["config"]["model"]["backend"] == "unsloth" and made["versions"]["unsloth"]
    assert len(list((tmp_path / "generated_audio").glob("*.wav"))) == 3


FAULT = """
import sys
from tests.support import stand_in_gpu
stand_in_gpu.install()
stand_in_gpu.after_import()
import unsloth.models.loader as loader
from orpheus.errors import UserError
from orpheus.model.base import load_base
real = loader.FastLanguageModel.from_pretrained
for refused in ({"max_seq_length": 16385, "load_in_4bit": False}, {"load_in_4bit": True}):
    if refused["load_in_4bit"]:  # what Unsloth does where it finds bitsandbytes of no use
        loader.FastLanguageModel.from_pretrained = staticmethod(lambda **k: real(**(k | {"load_in_4bit": False})))
        import unsloth
        unsloth.FastLanguageModel.from_pretrained = loader.FastLanguageModel.from_pretrained
    try:
        load_base(sys.argv[1], backend="unsloth", **refused)
        print("not refused")
    except UserError as error:
        print("refused:", error)
"""


def test_what_unsloth_does_in_silence_is_refused(trainings, tmp_path):
    lines = [line for line in python("-c", FAULT, str(trainings.base), cwd=tmp_path).splitlines() if "refused" in line]
    assert [line.startswith("refused:") for line in lines] == [True, True]
    assert "built for 16384 tokens" in lines[0] and "none of its layers is" in lines[1]
