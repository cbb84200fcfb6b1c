"""The stand-ins of the published size: its ids, its shape, its format; random, but drawing whole frames."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from orpheus.config import SamplingOptions
from orpheus.format.prompt import Renderer
from orpheus.format.tokens import ORPHEUS, Stop, TokenLayout
from orpheus.model.base import load_base, same_weights
from tests.support.codec_fixtures import PUBLISHED

SCRIPT = Path(__file__).resolve().parents[2] / "data" / "make" / "make_full_size.py"
SMALL = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16)  # fmt: skip


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_full_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


@pytest.fixture(scope="module")
def base(maker, tmp_path_factory) -> Path:
    """The published base, but narrow: all its ids, 10 M parameters, in several shards."""
    folder = tmp_path_factory.mktemp("narrow")
    patch = pytest.MonkeyPatch()
    patch.setattr(maker, "SHARD_BYTES", 100_000)
    patch.setattr(maker, "PIECE", 10_000)
    maker.write_base(folder, maker.BASE | SMALL, seed=1, workers=2, progress=False)
    patch.undo()
    return folder


@pytest.fixture(scope="module")
def loaded(base):
    return load_base(str(base), load_in_4bit=False)


def test_the_published_size(maker):
    shapes = maker.tensor_shapes(maker.BASE)
    assert sum(math.prod(shape) for shape in shapes.values()) == 3_300_867_072
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**maker.BASE))
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == shapes  # the head is tied: not among them
    rope = model.config.rope_parameters
    assert (rope["rope_type"], rope["rope_theta"], rope["factor"]) == ("llama3", 500000.0, 32.0)
    assert maker.CODEC == PUBLISHED


def test_the_published_ids(loaded):
    tokenizer = loaded.tokenizer
    assert loaded.layout == ORPHEUS == TokenLayout.from_tokenizer(tokenizer)
    assert len(tokenizer) == loaded.model.config.vocab_size == 156940
    assert tokenizer("Oh no, <sighs> not again.")["input_ids"].count(ORPHEUS.bos) == 1
    names = {128000: "<|begin_of_text|>", 128001: "<|end_of_text|>", 128002: "<|reserved_special_token_0|>",
             128004: "<|finetune_right_pad_id|>", 128009: "<|eot_id|>", 128255: "<|reserved_special_token_247|>",
             128256: "<custom_token_0>", 156939: "<custom_token_28683>"}  # fmt: skip
    assert tokenizer.convert_ids_to_tokens(list(names)) == list(names.values())
    text = "Straße <laughs> 123 यह \n ok"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text and max(ids) < ORPHEUS.bos


def test_it_loads_like_a_published_base(base, loaded):
    index = json.loads((base / "model.safetensors.index.json").read_text())
    files = {file.name for file in base.glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files and len(files) > 2
    assert index["metadata"]["total_size"] == 2 * sum(p.numel() for p in loaded.model.parameters())
    assert "noise" in (base / "README.json").read_text()
    state = loaded.model.state_dict()
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert 0.9 < state["model.layers.0.mlp.up_proj.weight"].std() * math.sqrt(64) < 1.1


def test_it_draws_whole_frames_and_ends(loaded):
    from orpheus.engines.torch.engine import TorchEngine

    prompt = Renderer(loaded.tokenizer, loaded.layout).prompt("Hello there.")
    engine = TorchEngine(loaded)

    def speak(temperature, seeds):
        rows: dict[int, list[int]] = {}
        sampling = SamplingOptions(temperature=temperature, max_new_tokens=210)
        for row, token in engine.stream([prompt] * len(seeds), sampling, seeds):
            rows.setdefault(row, []).append(token)
        return [ORPHEUS.unflatten(ids) for ids in rows.values()]

    spoken = speak(0.6, range(8))
    assert Stop.END_OF_SPEECH in (kinds := {stop.kind for _, stop in spoken}) and Stop.OUT_OF_RANGE not in kinds
    assert all(stop.dropped == 0 and codes.frames >= 1 for codes, stop in spoken)
    assert len({tuple(codes.fine[:4]) for codes, _ in spoken}) == 8
    ((codes, stop),) = speak(0.0, [0])
    assert (codes.frames, stop.kind) == (1, Stop.END_OF_SPEECH)
    assert {stop.kind for _, stop in speak(10.0, range(4))} == {Stop.OUT_OF_RANGE}


def test_the_seed_decides_and_nothing_else(maker, base, loaded, tmp_path):
    maker.write_base(tmp_path / "same", maker.BASE | SMALL, seed=1, workers=1, progress=False)
    maker.write_base(tmp_path / "other", maker.BASE | SMALL, seed=2, workers=1, progress=False)
    assert len(list((tmp_path / "same").glob("*.safetensors"))) == 1
    same, other = (load_base(str(tmp_path / name), load_in_4bit=False) for name in ("same", "other"))
    for name, weight in loaded.model.state_dict().items():
        # Pieces of another size draw the same numbers, because they are drawn in the same order.
        assert torch.equal(weight, same.model.state_dict()[name]), name
    assert same_weights(same.fingerprint, loaded.fingerprint)
    assert not same_weights(other.fingerprint, loaded.fingerprint)


def test_rounding_is_torch_s(maker):
    numbers = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    numbers[:3] = 0.0, 1.00390625, 1.01171875  # the last two lie half way between two
    expected = torch.from_numpy(numbers.copy()).bfloat16().view(torch.uint16).numpy()
    assert (maker.to_bfloat16(numbers.copy()) == expected).all()


def test_the_codec_is_the_published_one(maker, tmp_path):
    from orpheus.codec.snac import SnacCodec

    maker.write_codec(tmp_path, seed=0)
    codec = SnacCodec.load(tmp_path)
    (codes,) = codec.encode([np.zeros(5000, np.float32)])
    assert codes.frames == 3 and len(codec.decode(codes)) == 3 * 2048
    assert codec.reach == (4757, 4757)


def test_the_program_refuses_to_overwrite(tmp_path):
    (tmp_path / "codec").mkdir()
    (tmp_path / "codec" / "mine.txt").write_text("keep")
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--what", "codec"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "is not empty" in done.stderr and (tmp_path / "codec" / "mine.txt").exists()
    done = subprocess.run([*command, "--overwrite"], capture_output=True, text=True)
    assert done.returncode == 0 and "noise" in done.stdout and not (tmp_path / "codec" / "mine.txt").exists()


def test_a_disk_that_is_too_small_is_said_before_writing(maker, tmp_path):
    with pytest.raises(ValueError, match="needs 1000000.0 GB and has"):
        maker.prepare_folder(tmp_path / "base", 10**15, overwrite=False)
