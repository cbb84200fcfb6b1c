"""Base and adapter: loading in 4, 16 and 32 bit, LoRA invariants, saving, misfits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from orpheus.config import LoraOptions
from orpheus.errors import MissingPackage, UserError
from orpheus.model.adapter import add_lora, attach_adapter, merge, save_adapter, trainable_parameters
from orpheus.model.base import load_base, same_weights
from orpheus.model.provenance import FILE_NAME, Provenance
from tests.support.tiny import save_base

IDS = torch.tensor([[262, 256, 40, 41, 258, 263, 264, 260, 300, 4400, 9000]])
ROOT = Path(__file__).resolve().parents[2]


def logits(loaded) -> torch.Tensor:
    with torch.inference_mode():
        return loaded.model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits.float()


@pytest.fixture(scope="module")
def plain(base_dir):
    return load_base(str(base_dir), load_in_4bit=False)


def test_4_16_and_32_bit_agree_about(base_dir, plain):
    full = logits(plain)
    half = load_base(str(base_dir), load_in_4bit=False, dtype=torch.bfloat16)
    quantised = load_base(str(base_dir), load_in_4bit=True)
    assert plain.model.dtype == torch.float32 and half.model.dtype == torch.bfloat16
    assert quantised.in_4bit and not plain.in_4bit
    import bitsandbytes

    layers = [m for m in quantised.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert (
        len(layers) == 14 and layers[0].weight.quant_state.quant_type == "nf4" and layers[0].weight.quant_state.nested
    )
    scale = full.std()
    assert (logits(half) - full).std() < 0.05 * scale
    assert (logits(quantised) - full).std() < 0.5 * scale
    # The weights are the same base whatever they are loaded in.
    narrow = load_base(str(base_dir), load_in_4bit=False, dtype=torch.float16)  # what a T4 computes in
    for other in (half, narrow, quantised):
        assert same_weights(plain.fingerprint, other.fingerprint)


def test_a_large_base_stays_in_16_bit_on_a_cpu(base_dir, monkeypatch):
    """Orpheus-3B in 32 bit would take 13 GB. Its own 16 bits lose nothing, and what was asked for is still done."""
    assert load_base(str(base_dir), load_in_4bit=False).dtype == torch.float32
    monkeypatch.setattr("orpheus.model.base.LARGE_ON_CPU", 10**6)
    large = load_base(str(base_dir), load_in_4bit=False)
    assert large.dtype == large.model.dtype == torch.bfloat16
    assert load_base(str(base_dir), load_in_4bit=True).dtype == torch.bfloat16
    assert load_base(str(base_dir), load_in_4bit=False, dtype=torch.float32).model.dtype == torch.float32


def test_another_base_has_another_fingerprint(plain, tmp_path):
    other = load_base(str(save_base(tmp_path, seed=5)), load_in_4bit=False)
    assert not same_weights(other.fingerprint, plain.fingerprint)


def test_what_the_loader_finds_out(plain, base_dir):
    assert plain.base == str(base_dir) and plain.backend == "transformers" and plain.context_length == 16384
    assert plain.voices == () and plain.layout.pad == 266


def test_trainable_parameters_by_hand(base_dir):
    """r (in + out) for each target of each layer: the base stays frozen."""
    loaded = add_lora(load_base(str(base_dir), load_in_4bit=False), LoraOptions(r=8), alpha=16,
                      gradient_checkpointing=False, seed=0)  # fmt: skip
    hidden, kv, ffn, layers = 64, 32, 128, 2
    per_layer = 8 * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + ffn))
    assert trainable_parameters(loaded.model) == layers * per_layer
    assert not any(p.requires_grad for n, p in loaded.model.named_parameters() if "lora_" not in n)


@pytest.mark.parametrize("in_4bit", [False, True])
def test_a_fresh_adapter_changes_nothing_and_depends_on_its_seed(base_dir, in_4bit):
    def adapted(seed):
        base = load_base(str(base_dir), load_in_4bit=in_4bit)
        before = logits(base)
        loaded = add_lora(base, LoraOptions(r=4), alpha=4, gradient_checkpointing=False, seed=seed)
        assert torch.allclose(logits(loaded), before, atol=1e-5)
        return next(p for n, p in loaded.model.named_parameters() if "lora_A" in n).detach()

    a, b, c = adapted(1), adapted(1), adapted(2)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_validation_pass_does_not_cut_the_gradients_of_a_4_bit_base(base_dir):
    """bitsandbytes repacks weights on some CPUs in evaluation mode, and the packed product has no gradient."""

    def gradient(evaluate_first):
        loaded = add_lora(load_base(str(base_dir), load_in_4bit=True), LoraOptions(r=4), alpha=4,
                          gradient_checkpointing=False, seed=0)  # fmt: skip
        if evaluate_first:
            logits(loaded)
        loaded.model.train()
        loaded.model(input_ids=IDS, labels=IDS).loss.backward()
        return {n: p.grad for n, p in loaded.model.named_parameters() if p.grad is not None}

    fresh, after = gradient(False), gradient(True)
    assert fresh.keys() == after.keys() and len(fresh) == 28
    for name in fresh:
        assert torch.allclose(fresh[name], after[name], atol=1e-6), name


def test_merged_equals_base_plus_adapter(base_dir, adapter_dir, plain):
    base = logits(plain)
    loaded = attach_adapter(load_base(str(base_dir), load_in_4bit=False), adapter_dir)
    adapted = logits(loaded)
    merged = merge(loaded)
    assert not hasattr(merged.model, "peft_config") or not any("lora" in n for n, _ in merged.model.named_modules())
    assert torch.allclose(logits(merged), adapted, atol=1e-4)
    assert (adapted - base).abs().max() > 0.01  # the adapter does something
    quantised = attach_adapter(load_base(str(base_dir), load_in_4bit=True), adapter_dir)
    with pytest.raises(UserError, match="16 bit to merge"):
        merge(quantised)


FRESH = """
import sys, torch
from orpheus.model.adapter import attach_adapter
from orpheus.model.base import load_base
from pathlib import Path
base, folder, ids = sys.argv[1], Path(sys.argv[2]), torch.tensor([eval(sys.argv[3])])
for bits in (4, 32):
    loaded = attach_adapter(load_base(base, load_in_4bit=bits == 4), folder / f"adapter_{bits}")
    with torch.inference_mode():
        logits = loaded.model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
    torch.save(logits, folder / f"logits_{bits}.pt")
"""


def trained_a_little(base_dir: Path, in_4bit: bool, folder: Path) -> torch.Tensor:
    """Logits of an adapter after three steps, which is saved to `folder`."""
    base = load_base(str(base_dir), load_in_4bit=in_4bit)
    loaded = add_lora(base, LoraOptions(r=4), alpha=8, gradient_checkpointing=False, seed=0)
    optimiser = torch.optim.AdamW([p for p in loaded.model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        loaded.model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimiser.step()
    save_adapter(loaded, folder, provenance_of(base))
    return logits(loaded)


def test_reloaded_in_a_fresh_process_the_logits_are_the_same(base_dir, tmp_path):
    expected = {bits: trained_a_little(base_dir, bits == 4, tmp_path / f"adapter_{bits}") for bits in (4, 32)}
    subprocess.run([sys.executable, "-c", FRESH, str(base_dir), str(tmp_path), str(IDS[0].tolist())], check=True,
                   cwd=ROOT, capture_output=True)  # fmt: skip
    for bits, before in expected.items():
        reloaded = torch.load(tmp_path / f"logits_{bits}.pt", weights_only=True)
        assert torch.allclose(reloaded, before, atol=1e-5), bits


def provenance_of(base, **more) -> Provenance:
    return Provenance(base=base.base, codec="none", layout=base.layout, base_fingerprint=base.fingerprint, **more)


def test_plain_peft_loads_the_folder(base_dir, adapter_dir):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32), adapter_dir)
    ours = attach_adapter(load_base(str(base_dir), load_in_4bit=False), adapter_dir)
    with torch.inference_mode():
        theirs = model.eval()(input_ids=IDS).logits
    assert torch.allclose(theirs, logits(ours), atol=1e-5)
    assert AutoTokenizer.from_pretrained(adapter_dir)("Hi")["input_ids"][0] == 256
    assert not (adapter_dir / ".saving").exists() and not list(adapter_dir.glob("*.bin"))


def test_provenance_round_trip(tmp_path, plain):
    made = provenance_of(plain, voices=("a", "b"), tags={"laughs": 3}, config={"x": [1]}, data_hash="h")
    made.save(tmp_path)
    assert Provenance.load(tmp_path) == made and Provenance.load(tmp_path / "none") is None
    (tmp_path / FILE_NAME).write_text('{"base": ')
    with pytest.raises(UserError, match="is damaged"):
        Provenance.load(tmp_path)


def edit(folder: Path, copy: Path, name: str, change) -> Path:
    shutil.copytree(folder, copy)
    data = json.loads((copy / name).read_text())
    change(data)
    (copy / name).write_text(json.dumps(data))
    return copy


def test_an_adapter_of_another_base_is_refused(adapter_dir, plain, tmp_path):
    other = load_base(str(save_base(tmp_path / "weights", seed=9)), load_in_4bit=False)
    with pytest.raises(UserError, match="was trained on .* has other weights"):
        attach_adapter(other, adapter_dir)
    wider = load_base(str(save_base(tmp_path / "wider", hidden_size=96, head_dim=24)), load_in_4bit=False)
    with pytest.raises(UserError, match="does not fit the base.*64.*96"):
        attach_adapter(wider, adapter_dir)
    fewer = load_base(str(save_base(tmp_path / "fewer", num_hidden_layers=1)), load_in_4bit=False)
    with pytest.raises(UserError, match="does not fit the base.*no such layer"):
        attach_adapter(fewer, adapter_dir)
    moved = edit(adapter_dir, tmp_path / "moved", FILE_NAME, lambda d: d["layout"].update(audio_start=128266))
    with pytest.raises(UserError, match="another token layout"):
        attach_adapter(plain, moved)


def test_damaged_adapters_are_refused(adapter_dir, plain, tmp_path):
    shutil.copytree(adapter_dir, tmp_path / "cut")
    weights = tmp_path / "cut" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        attach_adapter(plain, tmp_path / "cut")


def test_a_rank_that_does_not_belong_to_the_weights(adapter_dir, plain, tmp_path):
    wrong = edit(adapter_dir, tmp_path / "wrong", "adapter_config.json", lambda d: d.update(r=8))
    with pytest.raises(UserError, match="does not fit.*promises.*8"):
        attach_adapter(plain, wrong)
    (wrong / "adapter_config.json").write_text("[]")
    with pytest.raises(UserError, match="is damaged"):
        attach_adapter(plain, wrong)


def test_a_real_limit_on_file_sizes_is_one_clear_line(base_dir, tmp_path):
    """safetensors and tokenizers wrap the system's error in types of their own."""
    import resource

    loaded = add_lora(load_base(str(base_dir), load_in_4bit=False), LoraOptions(r=4), alpha=4,
                      gradient_checkpointing=False, seed=3)  # fmt: skip
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (20_000, 200_000):  # the adapter's weights do not fit; the tokenizer does not
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(UserError, match="can't be written to"):
                save_adapter(loaded, tmp_path / "adapter", provenance_of(loaded))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert list((tmp_path / "adapter").iterdir()) == []


def test_a_full_disk_keeps_the_old_adapter(adapter_dir, base_dir, tmp_path, monkeypatch):
    import errno

    folder = tmp_path / "adapter"
    shutil.copytree(adapter_dir, folder)
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    loaded = add_lora(load_base(str(base_dir), load_in_4bit=False), LoraOptions(r=4), alpha=4,
                      gradient_checkpointing=False, seed=3)  # fmt: skip

    def full(path, **_):
        (Path(path) / "adapter_model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loaded.model, "save_pretrained", full)
    with pytest.raises(UserError, match="can't be written.*No space left"):
        save_adapter(loaded, folder, provenance_of(loaded))
    assert {f.name: f.read_bytes() for f in folder.iterdir()} == before


@pytest.mark.parametrize(
    "lora, says",
    [
        (LoraOptions(target_modules=("q_proj", "lm_head")), "tied matrix"),
        (LoraOptions(target_modules=("model.embed_tokens",)), "tied matrix"),
        (LoraOptions(r=0), "r is 0"),
        (LoraOptions(lora_dropout=1.0), "dropout 1.0"),
        (LoraOptions(target_modules=()), "no target layers"),
        (LoraOptions(target_modules=("q_proj", "query")), "query are not in this model; it has .*q_proj"),
    ],
)
def test_impossible_adapters_are_refused(base_dir, lora, says):
    """Defect 13: an adapter on tied matrices is lost when merging."""
    with pytest.raises(UserError, match=says):
        add_lora(load_base(str(base_dir), load_in_4bit=False), lora, alpha=4, gradient_checkpointing=False, seed=0)


def test_bases_that_do_not_fit_are_refused(base_dir, tmp_path, monkeypatch):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    wrong = tmp_path / "text"
    shutil.copytree(base_dir, wrong)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))).save_pretrained(wrong)
    with pytest.raises(UserError, match="no token <custom_token_1>"):
        load_base(str(wrong), load_in_4bit=False)

    small = tmp_path / "small"
    shutil.copytree(base_dir, small)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_dir)
    model.resize_token_embeddings(1000)
    model.save_pretrained(small)
    with pytest.raises(UserError, match="1000 token rows.*audio ids reach"):
        load_base(str(small), load_in_4bit=False)

    with pytest.raises(UserError, match="no folder"):
        load_base(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no config.json"):
        load_base(str(tmp_path / "empty"))
    cut = tmp_path / "cut"
    shutil.copytree(base_dir, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(UserError, match="base model: the folder .*cut can't be loaded"):
        load_base(str(cut), load_in_4bit=False)
    for name in ("~nosuchuser/x", "x/" * 200):
        with pytest.raises(UserError, match="no folder"):
            load_base(name)
    with pytest.raises(UserError, match="unknown device 'foo'"):
        load_base(str(base_dir), device="foo")
    with pytest.raises(UserError, match="base model 'unsloth/orpheus-3b-0.1-ft' can't be had.*offline.*hf download"):
        load_base("unsloth/orpheus-3b-0.1-ft", load_in_4bit=False)


def test_the_weights_have_the_mode_of_the_umask(base_dir, tmp_path):
    import os

    loaded = add_lora(load_base(str(base_dir), load_in_4bit=False), LoraOptions(r=4), alpha=4,
                      gradient_checkpointing=False, seed=3)  # fmt: skip
    before = os.umask(0o022)
    try:
        folder = save_adapter(loaded, tmp_path / "adapter", provenance_of(loaded))
    finally:
        os.umask(before)
    assert {f.stat().st_mode & 0o777 for f in folder.iterdir()} == {0o644}


def test_a_base_never_runs_its_own_python(base_dir, tmp_path, monkeypatch):
    """Not even when 'y' waits on standard input for transformers' question."""
    import io

    folder = shutil.copytree(base_dir, tmp_path / "code")
    ran = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\ny\n"))
    with pytest.raises(UserError, match="code can't be loaded"):
        load_base(str(folder), load_in_4bit=False)
    assert not ran.exists() and sys.stdin.read() == "y\ny\ny\n"


def test_pickled_weights_are_not_loaded(base_dir, tmp_path):
    """Weights load as safetensors: a folder with pytorch_model.bin alone is refused."""
    folder = tmp_path / "pickled"
    shutil.copytree(base_dir, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors"):
        load_base(str(folder), load_in_4bit=False)


def test_missing_packages_name_their_install_command(base_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingPackage, match="4-bit loading needs the package 'bitsandbytes'.*pip install"):
        load_base(str(base_dir), load_in_4bit=True)
    monkeypatch.setattr("orpheus.model.with_unsloth.need_gpu", lambda: None)
    monkeypatch.setitem(sys.modules, "unsloth", None)
    with pytest.raises(MissingPackage, match="'unsloth'.*pip install -r requirements.txt -c constraints.txt"):
        load_base(str(base_dir), load_in_4bit=False, backend="unsloth")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_4_bit_on_the_gpu(base_dir):
    loaded = load_base(str(base_dir), load_in_4bit=True, backend="transformers")
    assert loaded.device.type == "cuda" and torch.isfinite(loaded.model(input_ids=IDS.cuda()).logits).all()
