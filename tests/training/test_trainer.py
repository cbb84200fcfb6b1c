"""Training: the loss falls, resumed equals uninterrupted, packing equals padding, Ctrl-C loses nothing."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orpheus.config import LoraOptions, TrainOptions
from orpheus.errors import UserError
from orpheus.format.prompt import IGNORE, Renderer
from orpheus.model.adapter import adapter_folder, add_lora, attach_adapter
from orpheus.model.base import load_base
from orpheus.model.pairs import base_of
from orpheus.training.batches import Collator, LengthGrouped
from orpheus.training.checkpoints import stop_on_interrupt
from orpheus.training.trainer import _make_trainer, losses_by_slot, token_losses, train
from tests.support.tiny import save_base
from tests.support.voices import some_codes

OPTIONS = TrainOptions(epochs=1, max_steps=8, learning_rate=5e-3, batch_size=2, gradient_accumulation=1, eval_every=0,
                       save_every=0, log_every=1, gradient_checkpointing=False, warmup_steps=0)  # fmt: skip
IDENTITY = {"data": "x"}


@pytest.fixture(scope="module")
def lively_base(tmp_path_factory):
    """Embeddings large enough for the frozen head to be confident: with tiny ones no adapter could lower the loss."""
    return save_base(tmp_path_factory.mktemp("lively"), initializer_range=0.15)


@pytest.fixture(scope="module")
def corpus(tokenizer, layout):
    """Twelve clips of 4 to 9 frames, with codes from a small part of each codebook, as speech has them."""
    from datasets import Dataset

    renderer = Renderer(tokenizer, layout)
    rows = []
    for i in range(12):
        codes = some_codes(4 + i % 6, seed=i)
        example = renderer.example(f"clip {i}", type(codes)(*(c % 16 for c in codes)))
        rows.append({"input_ids": example.input_ids, "labels": example.labels, "length": len(example.input_ids)})
    return Dataset.from_list(rows)


def adapter(base_dir, in_4bit=False, **options):
    loaded = load_base(str(base_dir), load_in_4bit=in_4bit)
    return add_lora(loaded, LoraOptions(r=8), alpha=16, gradient_checkpointing=False, seed=1)


def weights(loaded) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in loaded.model.named_parameters() if p.requires_grad}


def test_the_loss_falls_and_the_summary_says_so(lively_base, corpus, tmp_path):
    loaded = adapter(lively_base, in_4bit=True)
    options = replace(OPTIONS, max_steps=40, eval_every=20)
    summary = train(loaded, corpus, corpus.select(range(4)), options, tmp_path, IDENTITY)
    assert summary.validation_after < 0.8 * summary.validation_before
    assert summary.steps == 40 and not summary.interrupted and summary.tokens_per_s > 0
    assert summary.tokens == pytest.approx(40 * 2 * np.mean(corpus["length"]), rel=0.1)
    assert len(summary.validation_by_slot) == 7 and summary.peak_memory_bytes > 10**8
    assert summary.trainable_parameters == sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    summary.save(tmp_path)
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert log["steps"] == 40 and any("eval_slot_6" in entry for entry in log["history"])
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_resumed_equals_uninterrupted(lively_base, corpus, tmp_path):
    options = replace(OPTIONS, max_steps=10, save_every=4)
    whole = adapter(lively_base)
    train(whole, corpus, corpus.select([]), options, tmp_path / "whole", IDENTITY)

    class Stop(Exception):
        pass

    def stop_at_6(self, *args, **kwargs):
        if self.state.global_step == 6:
            raise Stop
        return original(self, *args, **kwargs)

    from trl import SFTTrainer

    original = SFTTrainer.training_step
    SFTTrainer.training_step = stop_at_6
    try:
        with pytest.raises(Stop):
            train(adapter(lively_base), corpus, corpus.select([]), options, tmp_path / "parts", IDENTITY)
    finally:
        SFTTrainer.training_step = original
    resumed = adapter(lively_base)
    summary = train(resumed, corpus, corpus.select([]), replace(options, resume=True), tmp_path / "parts", IDENTITY)
    assert summary.steps == 10
    one, two = weights(whole), weights(resumed)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    assert any(p.abs().max() > 1e-3 for n, p in one.items() if "lora_B" in n)


def test_ctrl_c_saves_a_checkpoint_and_resume_goes_on(lively_base, corpus, tmp_path, monkeypatch):
    from trl import SFTTrainer

    original = SFTTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of step 4
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", interrupted)
    summary = train(adapter(lively_base), corpus, corpus.select([]), OPTIONS, tmp_path, IDENTITY)
    assert summary.interrupted and summary.steps == 4
    assert (tmp_path / "checkpoints" / "checkpoint-4" / "trainer_state.json").exists()
    saved = adapter_folder(tmp_path / "checkpoints" / "checkpoint-4")  # it can be listened to already
    base = base_of(saved)
    assert attach_adapter(load_base(base, load_in_4bit=False), saved).adapted_modules == 14
    monkeypatch.undo()
    with pytest.raises(UserError, match="unfinished training.*checkpoint-4.*--resume"):
        train(adapter(lively_base), corpus, corpus.select([]), OPTIONS, tmp_path, IDENTITY)
    resume = replace(OPTIONS, resume=True)
    with pytest.raises(UserError, match="can't resume.*data was x, is y"):
        train(adapter(lively_base), corpus, corpus.select([]), resume, tmp_path, {"data": "y"})
    for name in ("optimizer.pt", "rng_state.pth", "adapter_model.safetensors", "trainer_state.json"):
        damaged = tmp_path / "checkpoints" / "checkpoint-4" / name
        before = damaged.read_bytes()
        damaged.write_bytes(b"damaged")
        with pytest.raises(UserError, match="can't resume from .*checkpoint-4: .*Delete it"):
            train(adapter(lively_base), corpus, corpus.select([]), resume, tmp_path, IDENTITY)
        damaged.write_bytes(before)
    # A checkpoint that was cut off while it was written is passed over.
    (tmp_path / "checkpoints" / "checkpoint-6").mkdir()
    resumed = adapter(lively_base)
    assert train(resumed, corpus, corpus.select([]), resume, tmp_path, IDENTITY).steps == 8
    whole = adapter(lively_base)
    train(whole, corpus, corpus.select([]), OPTIONS, tmp_path / "whole", IDENTITY)
    for name, weight in weights(whole).items():
        assert torch.allclose(weight, weights(resumed)[name], atol=1e-5), name


def test_ctrl_c_in_the_last_step_interrupts_nothing(lively_base, corpus, tmp_path, monkeypatch):
    from trl import SFTTrainer

    original = SFTTrainer.training_step

    def late(self, *args, **kwargs):
        if self.state.global_step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", late)
    summary = train(adapter(lively_base), corpus, corpus.select([]), OPTIONS, tmp_path, IDENTITY)
    assert summary.steps == 8 and not summary.interrupted


def test_the_adapter_of_a_4_bit_base_is_trained_in_32_bit(lively_base, corpus, tmp_path):
    """trl would turn it into bfloat16."""
    loaded = adapter(lively_base, in_4bit=True)
    _make_trainer(loaded, corpus, corpus.select([]), OPTIONS, tmp_path)
    assert {p.dtype for p in loaded.model.parameters() if p.requires_grad} == {torch.float32}


def test_a_second_ctrl_c_stops_at_once():
    before = signal.getsignal(signal.SIGINT)
    with stop_on_interrupt() as interrupt, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("train_on", ["speech", "all"])
def test_packed_rows_do_not_see_each_other(base_dir, corpus, layout, train_on):
    """Packed loss and gradients equal the padded ones."""
    loaded = adapter(base_dir)
    torch.manual_seed(0)
    for parameter in loaded.model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)  # with B = 0 half of the gradients would vanish
    examples = [corpus[i] for i in (0, 5, 3)]
    if train_on == "all":
        examples = [{**e, "labels": e["input_ids"]} for e in examples]

    def run(packing):
        loaded.model.zero_grad()
        batch = Collator(layout.pad, packing)(examples)
        loss = loaded.model(**batch, use_cache=False).loss
        loss.backward()
        return loss, torch.cat([p.grad.flatten() for p in loaded.model.parameters() if p.requires_grad])

    (padded, a), (packed, b) = run(False), run(True)
    assert torch.allclose(padded, packed, atol=1e-5)
    assert torch.allclose(a, b, atol=1e-5) and a.abs().max() > 1e-4


def test_the_collator_pads_with_ignored_labels(corpus, layout):
    examples = [corpus[0], corpus[5]]
    batch = Collator(layout.pad)(examples)
    short, long = (e["length"] for e in examples)
    assert batch["input_ids"].shape == (2, long)
    assert batch["input_ids"][0, short:].eq(layout.pad).all() and batch["labels"][0, short:].eq(IGNORE).all()
    assert batch["attention_mask"].sum(1).tolist() == [short, long]
    assert batch["labels"][1].tolist() == examples[1]["labels"]
    packed = Collator(layout.pad, packing=True)(examples)
    assert packed["input_ids"].shape == (1, short + long) and "attention_mask" not in packed
    assert packed["position_ids"][0].tolist() == [*range(short), *range(long)]


def test_nothing_is_cut_on_the_way_to_the_model(lively_base, corpus, tmp_path):
    """Defect 10: the trainer's own maximum length would cut end_of_speech off."""
    trainer = _make_trainer(adapter(lively_base), corpus, corpus.select([]), OPTIONS, tmp_path)
    seen = []
    for batch in trainer.get_train_dataloader():
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            seen.append(ids[mask.bool()].tolist())
    assert sorted(seen) == sorted(corpus["input_ids"])
    assert all(ids[-2:] == [261, 265] for ids in seen)
    assert trainer.args.push_to_hub is False


@given(st.lists(st.integers(1, 500), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 3))
def test_length_grouping_is_a_permutation_by_seed_and_epoch(lengths, batch, epoch):
    sampler = LengthGrouped(lengths, batch, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) == sorted(range(len(sampler))) and order == list(sampler)


def test_length_grouping_saves_padding_and_changes_by_epoch():
    lengths = np.random.default_rng(0).integers(50, 500, 400)
    sampler = LengthGrouped(lengths, 8, seed=0)

    def padding(order):
        batches = np.asarray(order).reshape(-1, 8)
        return 1 - lengths.sum() / (lengths[batches].max(1) * 8).sum()

    first = list(sampler)
    sampler.set_epoch(1)
    assert padding(first) < 0.05 < padding(range(400)) and list(sampler) != first


def test_token_losses_are_the_models_loss(base_dir, corpus, layout):
    loaded = load_base(str(base_dir), load_in_4bit=False)
    batch = Collator(layout.pad)([corpus[0], corpus[5]])
    with torch.inference_mode():
        out = loaded.model(**batch)
    losses = token_losses(out.logits, batch["labels"])
    counted = batch["labels"] != IGNORE
    assert losses.shape == batch["labels"].shape and not losses[~counted].any()
    assert torch.allclose(losses[counted].mean(), out.loss, atol=1e-5)
    by_slot = losses_by_slot(losses.numpy(), batch["labels"].numpy(), layout)
    assert set(by_slot) == {*(f"slot_{s}" for s in range(7)), "end_of_speech"}
    slot_3 = (batch["labels"] >= layout.slot_range(3)[0]) & (batch["labels"] <= layout.slot_range(3)[-1])
    assert by_slot["slot_3"] == pytest.approx(losses[slot_3].mean().item(), abs=1e-5)


def test_nothing_to_train_on_and_packing_with_unsloth(lively_base, corpus, tmp_path):
    with pytest.raises(UserError, match="no clip to train on"):
        train(adapter(lively_base), corpus.select([]), corpus, OPTIONS, tmp_path, IDENTITY)
    as_unsloth = replace(adapter(lively_base), backend="unsloth")
    with pytest.raises(UserError, match="packing is for the transformers back end"):
        train(as_unsloth, corpus, corpus, replace(OPTIONS, packing=True), tmp_path, IDENTITY)


def test_the_first_weights_of_a_4_bit_model_s_adapter_are_not_rounded(lively_base, corpus, tmp_path):
    """trl would round them to bfloat16."""
    loaded = adapter(lively_base, in_4bit=True)
    before = weights(loaded)
    _make_trainer(loaded, corpus, corpus, OPTIONS, tmp_path)
    after = weights(loaded)
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.float32 for name in before)


def test_ids_that_the_base_never_learnt_are_named(lively_base, corpus, tmp_path, layout):
    """Unsloth ends in a ValueError there, transformers trains what can't be learnt."""
    loaded = adapter(lively_base)
    rows, used = loaded.model.get_input_embeddings().weight, corpus[0]["input_ids"][-3]
    kept = rows.detach()[used].clone()
    with torch.no_grad():
        rows[used] = 0
        rows[layout.audio_end - 1] = 0 if layout.audio_end - 1 not in corpus[0]["input_ids"] else kept  # in no clip
    try:
        with pytest.raises(UserError, match=r"does not know 1 of the tokens.*<custom_token_\d+>.*all zero"):
            train(loaded, corpus.select([0]), corpus, OPTIONS, tmp_path, IDENTITY)
    finally:
        with torch.no_grad():
            rows[used] = kept


def test_a_full_disk_is_one_clear_line(lively_base, corpus, tmp_path, monkeypatch):
    import errno

    from trl import SFTTrainer

    def full(self, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SFTTrainer, "_save_checkpoint", full)
    with pytest.raises(UserError, match="can't write its files to .*No space left.*--resume"):
        train(adapter(lively_base), corpus, corpus.select([]), replace(OPTIONS, save_every=2), tmp_path, IDENTITY)
