"""The smoke test's own machinery: what runs, what is skipped and why, what a failure leaves. (`make smoke` runs it.)"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_smoke
from benchmarks.gpu_smoke import Options, complete, main, plan, reason_to_skip, run_step
from benchmarks.machine import ROOT, describe, without_paths
from benchmarks.smoke.data import durations
from orpheus.errors import UserError
from orpheus.tools import bench
from tests.support.pages import DOCS

CPU = Options(device="cpu", size="tiny")


def test_every_step_has_a_function_and_needs_earlier_ones():
    from benchmarks.smoke.steps import FUNCTIONS

    names = [step.name for step in gpu_smoke.STEPS]
    assert set(names) == {"models", "encode", *FUNCTIONS}
    for position, step in enumerate(gpu_smoke.STEPS):
        assert set(step.needs) <= set(names[:position])
        inputs = getattr(FUNCTIONS.get(step.name), "keywords", {})
        assert {inputs[k] for k in ("adapter", "reference") if k in inputs} <= {*step.needs, "train_peft_16bit"}


def test_every_benchmark_is_a_step():
    assert sorted(arguments[0] for arguments in gpu_smoke.BENCHMARKS) == sorted(bench.BENCHMARKS)


def test_only_brings_what_it_needs():
    assert [s.name for s in plan(replace(CPU, only=("merge",)))] == ["models", "train_peft_16bit", "merge"]
    assert len(plan(CPU)) == len(gpu_smoke.STEPS)
    with pytest.raises(UserError, match="unknown step mrege: expected some of .*merge"):
        plan(replace(CPU, only=("mrege",)))


def test_reasons():
    steps = {step.name: step for step in gpu_smoke.STEPS}
    gpu = replace(CPU, device="cuda")
    done = {"models": {"status": "ok"}, "train_peft_4bit": {"status": "failed"}}
    assert reason_to_skip(steps["t4_peft"], CPU, done, 9) == "needs a CUDA GPU"
    assert reason_to_skip(steps["t4_unsloth"], replace(gpu, unsloth=False), done, 9) == "--no-unsloth was given"
    assert "train_peft_4bit, which was not done" in reason_to_skip(steps["speak_peft"], gpu, done, 9)
    assert "no time left of 10 minutes" in reason_to_skip(steps["encode"], gpu, done, 0)
    assert reason_to_skip(steps["encode"], CPU, done, 9) is None


def test_a_step_that_fails_hangs_or_dies_is_told(tmp_path):
    def step(code, limit_s=60):
        return run_step([sys.executable, "-c", code], tmp_path / "log", limit_s)

    fine = step("print('talk'); print('{\"a\": 1}')")
    assert (fine["status"], fine["figures"]) == ("ok", {"a": 1})
    failed = step(f"raise ValueError('no {tmp_path}/x or {ROOT}/y')")
    assert (failed["status"], failed["reason"]) == ("failed", "ValueError: no WORK/x or ./y")
    assert step("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")["reason"].endswith("(killed by signal 9)")
    assert step("import time; time.sleep(30)", 0.5)["reason"].startswith("not finished after 0 s")


def test_one_failure_is_recorded_and_the_others_go_on(tmp_path, monkeypatch, capsys):
    def fake(command, log, limit_s):
        bad = "train_peft_4bit" in command
        return {"status": "failed", "reason": "why"} if bad else {"status": "ok", "seconds": 1.0, "figures": {}}

    monkeypatch.setattr(gpu_smoke, "run_step", fake)
    monkeypatch.setattr(gpu_smoke, "BENCHMARKS", [["--quick"]])
    with pytest.raises(SystemExit) as stopped:
        main(replace(CPU, out=tmp_path / "result.json", work=tmp_path))
    assert stopped.value.code == 1
    result = json.loads((tmp_path / "result.json").read_text())
    status = {name: step["status"] for name, step in result["steps"].items()}
    assert status["train_peft_4bit"] == "failed" and status["speak_peft"] == "skipped"
    assert status["merge"] == status["encode"] == status["bench --quick"] == "ok"
    assert {"machine", "versions", "commit", "command", "date"} <= set(result)
    assert str(tmp_path) not in json.dumps(result["settings"]) and "1 failed" in capsys.readouterr().out


@pytest.mark.skipif(__import__("torch").cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(UserError, match="sees no CUDA GPU"):
        complete(Options(device="cuda"))
    assert (complete(Options()).device, complete(Options()).size) == ("cpu", "tiny")


def test_results_name_machine_and_versions_but_no_places():
    about = describe()
    assert about["versions"]["torch"] and about["machine"]["cores"] and re.fullmatch(r"[\d-]{10}", about["date"])
    assert "/" not in about["machine"]["cpu"]
    assert without_paths(f"{Path.home()}/a {ROOT}/b") == "~/a ./b"
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert not re.search(r'"(/|~)|/(tmp|home|root|work)/', file.read_text(encoding="utf-8")), file


def test_clips_are_as_long_as_elise_s():
    seconds = durations(1200)
    assert 2.9 < seconds.sum() / 3600 < 3.1 and seconds.min() >= 1.0 and seconds.max() <= 22.0


def test_the_page_s_cpu_figures_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks" / "results" / "full_size_cpu.json").read_text(encoding="utf-8"))["full"]
    table = DOCS["measured"].text.split("| on a CPU, ", 1)[1].split("\n\n", 1)[0]
    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in table.splitlines()[2:]]
    for column, mode in enumerate(("default", "4bit")):
        found = measured[mode]
        memory, speed, load = (row[column] for row in rows)
        assert memory.startswith(f"{found['peak_rss_gb']:.1f} GB")
        assert speed == f"{found['tokens_per_s']['processor']:.2g}"
        assert load == f"{found['load_processor_s']:.0f} s"
