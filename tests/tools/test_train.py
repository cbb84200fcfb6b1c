"""`orpheus.train(...)`: the command's options as keywords; and what `import orpheus` does and does not do."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import orpheus
from orpheus import UserError
from tests.support.corpus_fixtures import write_metadata
from tests.support.pages import ROOT


@pytest.fixture
def given(base_dir, codec_dir, tmp_path, monkeypatch) -> dict:
    """A training that is over in a second."""
    monkeypatch.chdir(tmp_path)
    folder = write_metadata(tmp_path / "recordings", ".csv")
    return {"dataset": folder, "base": str(base_dir), "codec": str(codec_dir), "max_steps": 2, "r": 4, "batch_size": 2,
            "speak_samples": False, "output_dir": "lora_anna"}  # fmt: skip


def test_it_trains_and_returns_the_summary(given, tmp_path, capsys):
    summary = orpheus.train(**given)
    assert (summary.steps, summary.interrupted) == (2, False) and summary.train_loss > 0
    assert [row["step"] for row in summary.history if "loss" in row] and str(summary) in capsys.readouterr().out
    assert (tmp_path / "lora_anna" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "lora_model").exists() and not (tmp_path / "generated_audio").exists()


def test_with_gates_the_adapter_speaks_while_it_is_trained(given, tmp_path, capsys):
    """On a random base, which says nothing: every gate tells it, and something is kept all the same."""
    summary = orpheus.train(**given, gate_every=1)
    assert summary.kept_step in (1, 2) and "is kept, the best of 2 by gates" in capsys.readouterr().out
    results = json.loads((tmp_path / "lora_anna" / "orpheus.json").read_text())["results"]
    assert (results["kept_step"], results["why"]) == (summary.kept_step, summary.why)
    told = json.loads((tmp_path / "lora_anna" / "gates" / "step_1" / "gates.json").read_text())
    assert told["gates"]["ended"]["passed"] is False and results["gates"]["score"] < 0.8
    assert (tmp_path / "lora_anna" / "gates" / "gates.csv").read_text().startswith("step,validation_loss,score,ended")
    assert not (tmp_path / "lora_anna" / "checkpoints").exists()


@pytest.mark.slow
def test_the_embedded_voice_passes_more_gates_than_it_did(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = orpheus.train(preset="tiny", max_steps=24, gate_every=12, speak_samples=False, save_every=0)
    heard = {entry["step"]: entry for entry in summary.history if "gate_score" in entry}
    assert set(heard) == {12, 24} and heard[summary.kept_step]["gate_score"] == max(
        e["gate_score"] for e in heard.values()
    )
    assert heard[summary.kept_step]["gate_pitch"] > 0.8 and heard[summary.kept_step]["gate_ended"] > 0.8
    assert list((tmp_path / "lora_model" / "gates" / "step_12").glob("held_out_*.wav"))


@pytest.mark.parametrize("wrong, says", [
    ({"patience": 2}, "patience is 2, and it waits for gates: give --gate-every too"),
    ({"max_step": 2}, "no option 'max_step': did you mean max_steps"),
    ({"rhythm": 2}, "no option 'rhythm'"),
    ({"max_steps": "many"}, "max_steps is 'many'"),
    ({"max_steps": -1}, "max_steps is -1"),
    ({"learning_rate": 0}, "learning_rate is 0"),
    ({"train_on": "nothing"}, "train_on is 'nothing'"),
    ({"preset": "huge"}, "preset is 'huge'"),
    ({"dataset": "nowhere/at/all"}, "nowhere/at/all"),
    ({"dataset": 5}, "'5'"),
    ({"output_dir": 5}, "output_dir is 5"),
    ({"load_in_4bit": "perhaps"}, "load_in_4bit is 'perhaps'"),
])  # fmt: skip
def test_a_mistake_is_told_and_nothing_is_written(given, wrong, says, tmp_path):
    with pytest.raises(UserError) as told:
        orpheus.train(**given | wrong)
    assert says in str(told.value) and "\n" not in str(told.value)
    assert not [*tmp_path.glob("lora_anna/*")]


# ---- import orpheus ----


def test_public_names_are_listed_and_fetched_when_asked_for():
    assert set(orpheus.__all__) <= set(dir(orpheus))
    assert all(getattr(orpheus, name).__name__ == name for name in orpheus.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Orpheus'"):
        _ = orpheus.Orpheus


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, which knows nothing of the tests' environment for threads."""
    plain = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=plain | environment, capture_output=True, text=True
    )


TOLD = "import os; print(os.environ.get('OMP_WAIT_POLICY'))"
LOADED = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')"


@pytest.mark.parametrize("before, environment, policy, warnings", [
    ("", {}, "passive", 0),
    ("", {"OMP_WAIT_POLICY": "active"}, "active", 0),
    (LOADED, {"OMP_WAIT_POLICY": "active"}, "active", 0),
    (LOADED, {}, "None", 1),
])  # fmt: skip
def test_threads_wait_passively_unless_told_otherwise(before, environment, policy, warnings):
    done = python("\n".join([before, "import orpheus", "import orpheus.cli", TOLD]), **environment)
    assert done.returncode == 0 and done.stdout == f"{policy}\n"
    assert done.stderr.count("import orpheus first") == warnings == done.stderr.count("Warning")
