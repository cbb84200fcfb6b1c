"""The judge in a training: it changes nothing, the best is kept, patience ends it, an interruption loses nothing."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from orpheus.config import LoraOptions
from orpheus.model.adapter import add_lora
from orpheus.model.base import load_base
from orpheus.training.choosing import Kept, Verdict, best_step, got_worse, undisturbed, why
from orpheus.training.trainer import train
from tests.training.test_trainer import IDENTITY, OPTIONS, adapter, corpus, lively_base, weights  # noqa: F401 - fixtures

GATED = replace(OPTIONS, max_steps=8, gate_every=2)


class StandIn:
    """A judge that gives set scores, and behaves as badly as a speaker may: draws numbers, switches modes."""

    def __init__(self, loaded, *scores: float) -> None:
        self.loaded, self.scores, self.heard = loaded, list(scores), {}

    def __call__(self, folder) -> Verdict:
        random.random(), np.random.rand(3), torch.rand(5)
        self.loaded.model.eval()
        folder.mkdir(parents=True)
        (folder / "fixed_0.wav").write_bytes(b"RIFF")
        step = int(folder.name[5:])
        self.heard[step] = {name: p.detach().clone() for name, p in weights(self.loaded).items()}
        score = self.scores[step // 2 - 1]
        return Verdict(score, {"ended": score}, f"said at {step}")


def entries(summary, name: str) -> list[float]:
    return [entry[name] for entry in summary.history if name in entry]


def same(one, two) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_losses_are_the_same_with_and_without(lively_base, corpus, tmp_path, dropout):
    """Number for number, though the judge draws numbers and validation runs more often: with dropout chance matters."""

    def fresh():
        base = load_base(str(lively_base), load_in_4bit=True)
        return add_lora(base, LoraOptions(r=8, lora_dropout=dropout), alpha=16, gradient_checkpointing=False, seed=1)

    plain, gated = fresh(), fresh()
    without = train(plain, corpus, corpus.select(range(3)), OPTIONS, tmp_path / "a", IDENTITY)
    judge = StandIn(gated, 0.1, 0.2, 0.3, 0.4)
    with_it = train(gated, corpus, corpus.select(range(3)), GATED, tmp_path / "b", IDENTITY, judge)
    assert entries(without, "loss") == entries(with_it, "loss") and len(entries(without, "loss")) == 8
    assert entries(without, "grad_norm") == entries(with_it, "grad_norm")
    assert same(weights(plain), weights(gated)) and with_it.kept_step == 8


def test_the_best_is_kept_and_the_summary_says_why(lively_base, corpus, tmp_path):
    loaded = adapter(lively_base)
    judge = StandIn(loaded, 0.5, 0.9, 0.7, 0.6)
    summary = train(loaded, corpus, corpus.select(range(3)), GATED, tmp_path, IDENTITY, judge)
    assert same(weights(loaded), judge.heard[4]) and not same(judge.heard[4], judge.heard[8])
    assert (summary.kept_step, summary.steps) == (4, 8)
    assert "step 4 is kept, the best of 4 by gates: score 0.900, the last step's is 0.600" in summary.why
    assert "the lowest validation loss would have chosen step 8" in summary.why and summary.why in str(summary)
    validated = {entry["step"]: entry["eval_loss"] for entry in summary.history if "eval_loss" in entry}
    assert set(validated) == {0, 2, 4, 6, 8} and summary.validation_after == validated[4]
    assert summary.results()["kept_step"] == 4 and summary.results()["gates"] == {"score": 0.9, "ended": 0.9}
    assert [p.name for p in (tmp_path / "checkpoints").glob("best-*")] == ["best-4.safetensors"]
    summary.save(tmp_path)
    rows = list(csv.DictReader((tmp_path / "gates" / "gates.csv").open()))
    assert [(row["step"], row["score"], row["ended"]) for row in rows][1] == ("4", "0.9", "0.9")
    assert float(rows[1]["validation_loss"]) == validated[4]
    assert (tmp_path / "loss.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "training_log.json").read_text())["kept_step"] == 4


def test_patience_ends_it_after_two_that_got_worse(lively_base, corpus, tmp_path):
    loaded = adapter(lively_base)
    judge = StandIn(loaded, 0.9, 0.8, 0.7, 1.0)
    summary = train(loaded, corpus, corpus.select([]), replace(GATED, patience=2), tmp_path, IDENTITY, judge)
    assert (summary.steps, summary.kept_step, summary.interrupted) == (6, 2, False)
    assert summary.why.endswith("stopped at step 6, after 2 in a row got worse")
    assert same(weights(loaded), judge.heard[2])


def test_an_interrupted_training_keeps_its_history_and_its_best(lively_base, corpus, tmp_path, monkeypatch):
    from trl import SFTTrainer

    scores = (0.5, 0.9, 0.7, 0.6)
    whole = adapter(lively_base)
    options = replace(GATED, save_every=3)
    uncut = train(whole, corpus, corpus.select([]), options, tmp_path / "whole", IDENTITY, StandIn(whole, *scores))
    original = SFTTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)  # in step 6, at whose end the judge would be asked
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", interrupted)
    first = adapter(lively_base)
    judge = StandIn(first, *scores)
    summary = train(first, corpus, corpus.select([]), options, tmp_path / "cut", IDENTITY, judge)
    assert summary.interrupted and set(judge.heard) == {2, 4} and summary.kept_step is None
    monkeypatch.undo()
    second = adapter(lively_base)
    judge = StandIn(second, *scores)
    resumed = train(second, corpus, corpus.select([]), replace(options, resume=True), tmp_path / "cut", IDENTITY, judge)
    assert set(judge.heard) == {6, 8}  # what was left out at the interruption is asked first
    assert (resumed.kept_step, resumed.why) == (4, uncut.why)
    assert entries(resumed, "gate_score") == entries(uncut, "gate_score") == list(scores)
    assert same(weights(second), weights(whole)) and (tmp_path / "cut" / "gates" / "step_2" / "fixed_0.wav").exists()


def test_a_new_training_forgets_the_gates_of_the_one_before(lively_base, corpus, tmp_path):
    (tmp_path / "gates" / "step_99").mkdir(parents=True)
    loaded = adapter(lively_base)
    train(loaded, corpus, corpus.select([]), GATED, tmp_path, IDENTITY, StandIn(loaded, 1, 1, 1, 1))
    assert sorted(p.name for p in (tmp_path / "gates").iterdir()) == ["step_2", "step_4", "step_6", "step_8"]


def test_a_best_that_is_gone_is_said(lively_base, corpus, tmp_path, caplog):
    loaded = adapter(lively_base)

    class Forgetful(StandIn):
        def __call__(self, folder):
            (tmp_path / "checkpoints" / "best-2.safetensors").unlink(missing_ok=True)
            return super().__call__(folder)

    summary = train(loaded, corpus, corpus.select([]), GATED, tmp_path, IDENTITY, Forgetful(loaded, 0.9, 0.5, 0.6, 0.4))
    assert "the adapter of step 2, the best by gates, is gone" in caplog.text and summary.kept_step == 6


def test_chance_and_modes_are_as_before_even_after_a_failure():
    model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(2, 2))
    model[1].eval()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with pytest.raises(ValueError), undisturbed(model, torch.device("cpu")):
        model.eval()
        torch.rand(9)
        raise ValueError
    assert torch.equal(torch.rand(1), expected)
    assert [layer.training for layer in model.modules()] == [True, True, False]


HISTORY = [{"step": 2, "eval_loss": 3.0}, {"step": 2, "gate_score": 0.5}, {"step": 4, "eval_loss": 2.0},
           {"step": 4, "gate_score": 0.8}, {"step": 6, "gate_score": 0.8}, {"step": 6, "eval_loss": 1.0}]  # fmt: skip


def test_of_equal_scores_the_lower_loss_is_the_better():
    assert best_step(HISTORY) == 6 and best_step(HISTORY, [2, 4]) == 4 and best_step([]) is None
    assert "loss would" not in why(HISTORY, 6, 6, 0)


@pytest.mark.parametrize("scores, times, worse", [
    ([0.9, 0.8, 0.7], 2, True), ([0.9, 0.8, 0.8], 2, False), ([0.9, 0.8], 2, False), ([0.9, 0.7, 0.8], 2, False),
    ([0.9, 0.8, 0.7], 0, False), ([0.9, 0.8], 1, True),
])  # fmt: skip
def test_worse_in_a_row(scores, times, worse):
    assert got_worse([{"step": i, "gate_score": score} for i, score in enumerate(scores)], times) is worse


def test_a_checkpoint_s_best_stays_until_the_next_checkpoint(tmp_path):
    model = torch.nn.Linear(2, 2)
    kept = Kept(tmp_path, model)
    kept.keep(2)
    kept.safe = 2
    kept.keep(4)
    with torch.no_grad():
        model.weight.fill_(7)
    kept.keep(6)
    assert sorted(kept.steps()) == [2, 6]
    kept.restore(2)
    assert torch.equal(model.weight, load_file(str(kept.file(2)))["weight"]) and model.weight.max() < 7
