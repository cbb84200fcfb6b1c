"""A base or codec that is damaged, absurd or hostile is one line, before anything is built from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orpheus.codec.snac import SnacCodec
from orpheus.errors import UserError
from orpheus.model.base import load_base
from orpheus.model.provenance import FILE_NAME, Provenance

NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


def spoilt(folder: Path, copy: Path, change=None, **config) -> str:
    """A copy of a model's folder with other weights, or other figures in its config.json."""
    shutil.copytree(folder, copy)
    if change:
        save_file(change(load_file(copy / "model.safetensors")), copy / "model.safetensors", {"format": "pt"})
    file = copy / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return str(copy)


def with_one(name: str, number: float):
    def change(tensors):
        tensors[name].view(-1)[3] = number
        return tensors

    return change


@pytest.mark.parametrize("in_4bit", [False, True])
@pytest.mark.parametrize("name", [NORM, UP, "model.embed_tokens.weight"])
@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_a_base_with_numbers_that_are_none(base_dir, tmp_path, name, number, in_4bit):
    with pytest.raises(UserError, match=f"is damaged: {name} holds NaN or infinity"):
        load_base(spoilt(base_dir, tmp_path / "b", with_one(name, number)), load_in_4bit=in_4bit)


BASES = {
    "integers": (lambda t: t | {UP: t[UP].to(torch.int8)}, {}, "holds I8 in model.layers.1.mlp.up_proj"),
    "a layer less": (lambda t: {k: v for k, v in t.items() if "layers.1." not in k}, {}, "weights of 1 layers"),
    "a tensor less": (lambda t: {k: v for k, v in t.items() if k != UP}, {}, f"lacks 1 of its weights, such as {UP}"),
    "a million layers": (None, {"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
    "more layers than weights": (None, {"num_hidden_layers": 1000}, "weights of 2 layers, expected 1000"),
    "a wide one": (None, {"hidden_size": 10**9}, "hidden_size is 1000000000"),
    "a wide one that might be": (None, {"hidden_size": 65536}, "does not fit its config.json: the embedding"),
    "a fraction": (None, {"vocab_size": 1.5}, "vocab_size is 1.5"),
    "a text": (None, {"num_attention_heads": "4"}, "num_attention_heads is 4 in"),
    "none": (None, {"intermediate_size": -1}, "intermediate_size is -1"),
    "gptq": (None, {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised with gptq.*unquantised"),
    "awq": (None, {"quantization_config": {"quant_method": "awq"}}, "quantised with awq"),
    "a quantisation of no kind": (None, {"quantization_config": "fp8"}, "quantised with fp8"),
}


@pytest.mark.parametrize("kind", BASES)
def test_a_base_that_can_not_be(base_dir, tmp_path, kind):
    change, config, says = BASES[kind]
    with pytest.raises(UserError, match=says):
        load_base(spoilt(base_dir, tmp_path / "b", change, **config), load_in_4bit=False)


@pytest.mark.parametrize("text", ["", "[]", "[" * 200_000, "\xff\xfe", "7"])
def test_a_config_that_is_none(base_dir, tmp_path, text):
    folder = spoilt(base_dir, tmp_path / "b")
    (tmp_path / "b" / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="config.json is damaged"):
        load_base(folder, load_in_4bit=False)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "sub/part.safetensors", "..", 7])
def test_a_shard_outside_of_its_folder(base_dir, tmp_path, name):
    folder = Path(spoilt(base_dir, tmp_path / "b"))
    shutil.move(folder / "model.safetensors", tmp_path / "secret.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {NORM: name}}))
    with pytest.raises(UserError, match="is refused: it names|names no files"):
        load_base(str(folder), load_in_4bit=False)


def test_honest_shards_are_read(base_dir, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = Path(spoilt(base_dir, tmp_path / "b"))
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(base_dir).save_pretrained(folder, max_shard_size="2MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert load_base(str(folder), load_in_4bit=False).layout.pad == 266


CODECS = {
    "NaN": (lambda t: with_one(next(iter(t)), float("nan"))(t), {}, "holds NaN"),
    "integers": (lambda t: {k: v.to(torch.int32) for k, v in t.items()}, {}, "is int32, expected floating"),
    "a tensor less": (lambda t: dict(list(t.items())[1:]), {}, "does not fit its config.json"),
    "wide": (None, {"decoder_dim": 10**6}, "does not fit|not the config|Orpheus needs"),
    "endless": (None, {"codebook_size": 10**12}, "does not fit|not the config|Orpheus needs"),
    "texts": (None, {"encoder_dim": "48"}, "not the config"),
    "no rates": (None, {"encoder_rates": []}, "does not fit|not the config|Orpheus needs"),
    "rates of no kind": (None, {"decoder_rates": 8}, "not the config"),
}


@pytest.mark.parametrize("kind", CODECS)
def test_a_codec_that_can_not_be(codec_dir, tmp_path, kind):
    change, config, says = CODECS[kind]
    with pytest.raises(UserError, match=says):
        SnacCodec.load(spoilt(codec_dir, tmp_path / "c", change, **config))


def test_a_pickled_codec_of_other_things(codec_dir, tmp_path):
    folder = Path(spoilt(codec_dir, tmp_path / "c"))
    (folder / "model.safetensors").unlink()
    for other in ([1, 2], {"a": 1}, torch.ones(3)):
        torch.save(other, folder / "pytorch_model.bin")
        with pytest.raises(UserError, match="other things than named tensors"):
            SnacCodec.load(folder)


WRONG = {
    "voices": [[1], "anna", {"a": 1}, 7],
    "speech_statistics": [[1], "fast", {"clips": "many"}, {"clips": float("nan")}],
    "layout": [None, [], {"bos": 1}, {"bos": "a"}],
    "base": [7, ["a"], None],
    "tags": [["laugh"], {"laugh": "often"}],
    "base_fingerprint": ["x", [None], [float("inf")]],
    "config": [[1], "x"],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in WRONG.items() for value in values])
def test_an_orpheus_json_of_wrong_types(adapter_dir, tmp_path, name, value):
    made = json.loads((adapter_dir / FILE_NAME).read_text())
    (tmp_path / FILE_NAME).write_text(json.dumps(made | {name: value}))
    with pytest.raises(UserError, match=rf"orpheus.json is damaged \({name}.*restore it") as refused:
        Provenance.load(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\x00\xff\x80binary", b"[" * 200_000, b'{"a":' * 200_000, b"[1]", b"null",
                                     b"{}", b" " * (2**24 + 1)])  # fmt: skip
def test_an_orpheus_json_that_is_none(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(UserError, match="orpheus.json is damaged"):
        Provenance.load(tmp_path)
