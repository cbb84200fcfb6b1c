"""Several processes on one job: `accelerate launch` with two CPU processes over gloo trains what one process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orpheus import processes
from orpheus.errors import UserError
from orpheus.model.base import load_base, pick_device
from orpheus.training.choosing import Verdict
from tests.data.test_encoding import LAUNCH, ROOT, read_cache
from tests.support.corpus_fixtures import recorded, wav
from tests.training.test_trainer import IDENTITY, OPTIONS, adapter, corpus, lively_base, weights  # noqa: F401 - fixtures

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SHARED = replace(OPTIONS, max_steps=5, batch_size=2, gradient_accumulation=1, save_every=3, eval_every=0, gate_every=2)


class Judge:
    """Finds step 4 the best; notes when it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, folder: Path) -> Verdict:
        self.asked.append(int(folder.name[5:]))
        return Verdict({2: 0.5, 4: 0.9, 5: 0.7}[self.asked[-1]], {}, "")


def test_without_a_launcher_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (0, 1, True)
    assert processes.local_device("cuda") == "cuda"
    processes.wait_for_all()


def test_a_program_that_one_process_starts_is_alone(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "KEPT": "yes"}.items():
        monkeypatch.setenv(name, value)
    for name in os.environ.keys() - processes.environment_alone().keys():
        monkeypatch.delenv(name)
    assert (processes.rank(), processes.world_size(), os.environ["KEPT"]) == (0, 1, "yes")


def test_each_process_takes_its_own_gpu(monkeypatch):
    for name, value in {"RANK": "11", "WORLD_SIZE": "16", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert (processes.rank(), processes.world_size(), processes.is_main()) == (11, 16, False)
    assert (processes.local_device("cuda"), processes.local_device("cuda:1"), processes.local_device("cpu")) == (
        "cuda:3", "cuda:1", "cpu")  # fmt: skip
    monkeypatch.setattr("orpheus.model.base.has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert pick_device("auto") == pick_device("cuda") == "cuda:3"
    with pytest.raises(UserError, match="several processes are for the transformers back end"):
        load_base("anything", backend="unsloth", load_in_4bit=False)


def work(out: Path, base: Path, data: Path) -> None:
    """One of the two processes: a training that breaks off after a checkpoint, and the resumed one."""
    from datasets import load_from_disk
    from trl import SFTTrainer

    from orpheus.training.trainer import train

    class Stop(Exception):
        pass

    def broken(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.state.global_step == 4:
            raise Stop
        return step(self, *arguments, **more)

    written: list[str] = []
    write = Path.write_text
    Path.write_text = lambda self, *a, **k: (written.append(str(self)), write(self, *a, **k))[1]  # type: ignore
    data_set = load_from_disk(str(data))
    step, SFTTrainer.training_step = SFTTrainer.training_step, broken
    try:
        train(adapter(base), data_set, data_set.select(range(3)), SHARED, out, IDENTITY, Judge())
        raise AssertionError("it was to stop")
    except Stop:
        pass
    SFTTrainer.training_step = step
    loaded, judge = adapter(base), Judge()
    summary = train(loaded, data_set, data_set.select(range(3)), replace(SHARED, resume=True), out, IDENTITY, judge)
    result = {"rank": processes.rank(), "steps": summary.steps, "written": written, "tokens": summary.tokens,
              "asked": judge.asked, "kept": [summary.kept_step, summary.why],
              "losses": {e["step"]: e["loss"] for e in summary.history if "loss" in e},
              "validation": [summary.validation_before, summary.validation_after],
              "slots": summary.validation_by_slot,
              "trainable": summary.trainable_parameters}  # fmt: skip
    with open(out / f"result_{processes.rank()}.json", "w") as file:
        json.dump(result, file)
    torch.save(weights(loaded), out / f"weights_{processes.rank()}.pt")


@pytest.mark.slow
def test_two_processes_train_what_one_does(lively_base, corpus, tmp_path):
    """World size 2 is twice the accumulation: the same losses and weights, over an epoch's end and a resumption."""
    corpus.save_to_disk(str(tmp_path / "data"))
    out = tmp_path / "two"
    out.mkdir()
    command = [
        sys.executable,
        *LAUNCH,
        "-m",
        "tests.training.test_processes",
        str(out),
        str(lively_base),
        str(tmp_path / "data"),
    ]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[:6000]
    first, second = (json.loads((out / f"result_{rank}.json").read_text()) for rank in (0, 1))
    assert (first["rank"], second["rank"]) == (0, 1) and first["steps"] == second["steps"] == 5
    assert second["written"] == [] and first["written"]  # only the first process writes

    from orpheus.training.trainer import train

    alone = adapter(lively_base)
    options = replace(SHARED, gradient_accumulation=2, save_every=0)
    summary = train(alone, corpus, corpus.select(range(3)), options, tmp_path / "one", IDENTITY, Judge())
    assert (first["asked"], second["asked"]) == ([4, 5], [])  # the first process hears it, all keep the best
    assert first["kept"] == second["kept"] and summary.kept_step == first["kept"][0] == 4
    expected = {str(e["step"]): e["loss"] for e in summary.history if "loss" in e}
    assert first["losses"] == pytest.approx(expected, abs=1e-3) and len(expected) == 5  # rounded to 4 places in the log
    assert first["validation"] == pytest.approx([summary.validation_before, summary.validation_after], abs=2e-3)
    assert first["slots"] == pytest.approx(summary.validation_by_slot, abs=2e-3)
    for rank in (0, 1):
        trained = torch.load(out / f"weights_{rank}.pt")
        for name, weight in weights(alone).items():
            assert torch.allclose(trained[name], weight, atol=1e-4), name
    assert any(w.abs().max() > 1e-2 for n, w in weights(alone).items() if "lora_B" in n)


@pytest.mark.slow
def test_the_whole_program_under_accelerate_launch(tmp_path, capfd):
    """Recordings to an adapter: what one process with twice the accumulation makes, and said and saved once."""
    import orpheus_sft_unsloth
    from orpheus.cli import parse
    from orpheus.config import SftOptions

    for number, clip in enumerate(recorded(6)):
        (tmp_path / f"{number}.wav").write_bytes(wav(clip))
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f"{i}.wav,Clip {i}.\n" for i in range(6)))

    def arguments(out: str, accumulation: int) -> list[str]:
        return ["--preset", "tiny", "--dataset", str(tmp_path), "--cache-dir", str(tmp_path / f"{out}_codes"),
                "--output-dir", str(tmp_path / out), "--no-speak-samples", "--batch-size", "1", "--validation-share",
                "0.34", "--gradient-accumulation", str(accumulation), "--max-steps", "3", "--log-every", "1",
                "--save-every", "2", "--warmup-steps", "0", "--learning-rate", "0.001"]  # fmt: skip

    command = [sys.executable, *LAUNCH, str(ROOT / "orpheus_sft_unsloth.py"), *arguments("two", 1)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[:6000]
    orpheus_sft_unsloth.main(parse(SftOptions, arguments("one", 2)))
    alone = capfd.readouterr().out
    for said in ("preset tiny: base", "6 of 6 from", "3 steps", "adapter: "):
        assert done.stdout.count(said) == alone.count(said) == 1, f"{said}\n{done.stdout}\n{alone}"
    two, one = tmp_path / "two", tmp_path / "one"
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert read_cache(tmp_path / "two_codes") == read_cache(tmp_path / "one_codes")
    logs = [json.loads((folder / "training_log.json").read_text())["history"] for folder in (two, one)]
    for loss in ("loss", "eval_loss"):
        shared, expected = ([entry[loss] for entry in log if loss in entry] for log in logs)
        assert shared == pytest.approx(expected, abs=2e-3) and len(expected) == {"loss": 3, "eval_loss": 2}[loss]
    shared, expected = (load_file(folder / "adapter_model.safetensors") for folder in (two, one))
    assert set(shared) == set(expected)
    for name, weight in expected.items():  # where a gradient is nearly zero, Adam makes a step of its rounding
        assert (torch.abs(shared[name] - weight) > 1e-4).float().mean() < 0.01, name


if __name__ == "__main__":
    work(*(Path(argument) for argument in sys.argv[1:]))
