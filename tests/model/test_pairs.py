"""Base and codec belong together: by orpheus.json, the hub id or the size; never by the preset of another."""

from __future__ import annotations

import json
import shutil

import pytest

from orpheus.config import HUB_BASE, HUB_CODEC, PRESETS, ModelOptions, SftOptions, VoiceOptions, embedded_path
from orpheus.errors import UserError
from orpheus.model.adapter import adapter_folder
from orpheus.model.pairs import base_of, codec_of
from orpheus.model.provenance import FILE_NAME
from orpheus.speak.inference import OrpheusInference, load_voice
from orpheus.tools.train import settle

TINY = PRESETS["tiny"]


def sized(folder, rows):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
    return str(folder)


@pytest.mark.parametrize(
    "base, codec",
    [(HUB_BASE, HUB_CODEC), (f"{HUB_BASE}-unsloth-bnb-4bit", HUB_CODEC), ("canopylabs/orpheus-3b-0.1-ft", HUB_CODEC),
     ("canopylabs/3b-fr-ft-research_release", HUB_CODEC), (TINY.base, TINY.codec),
     (embedded_path(TINY.base), TINY.codec)],
)  # fmt: skip
def test_what_is_known(base, codec):
    assert codec_of(base) == codec


def test_by_size(tmp_path):
    """156,938 ids; unsloth's copy has two rows more, and some trainers fill up to a multiple of 64."""
    for rows in (156938, 156940, 156992):
        assert codec_of(sized(tmp_path / str(rows), rows)) == HUB_CODEC
    for rows in (128256, 156937, 160000, "156940", None):
        with pytest.raises(UserError, match="not known: name it with --codec"):
            codec_of(sized(tmp_path / f"other_{rows}", rows))
    with pytest.raises(UserError, match=r"'nobody/unheard' can't be had"):
        codec_of("nobody/unheard")
    (tmp_path / "156938" / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="config.json is damaged"):
        codec_of(str(tmp_path / "156938"))


def test_on_a_machine_without_a_gpu_the_published_base_keeps_its_codec(monkeypatch):
    """The preset is tiny there; its codec belongs to another base."""
    assert settle(SftOptions(model=ModelOptions(base=HUB_BASE))).model.codec == HUB_CODEC
    assert settle(SftOptions()).model.codec == TINY.codec
    assert settle(SftOptions(model=ModelOptions(base=HUB_BASE, codec="mine"))).model.codec == "mine"
    asked = []
    monkeypatch.setattr("orpheus.speak.inference.open_voice", lambda wish: asked.append(wish) or 1 / 0)
    for options in (
        VoiceOptions(adapter=None, base=HUB_BASE),
        VoiceOptions(adapter=None, base=HUB_BASE, preset="tiny"),
    ):
        with pytest.raises(ZeroDivisionError):
            load_voice(options)
    from orpheus.engines.choose import named

    assert {named(wish, "torch").codec for wish in asked} == {HUB_CODEC}


@pytest.fixture
def without_json(tmp_path, codec_dir):
    """Somebody's adapter on the embedded base: peft's two files and nothing more."""
    from tests.support.voices import save_random_adapter

    folder = save_random_adapter(tmp_path / "adapter", embedded_path(TINY.base), embedded_path(TINY.codec), std=0.01)
    (folder / FILE_NAME).unlink()
    return folder


def test_an_adapter_of_another_trainer_speaks_with_the_base_that_it_names(without_json):
    assert base_of(without_json) == embedded_path(TINY.base)
    tts = OrpheusInference(without_json)
    assert tts.codec.name == TINY.codec and tts.has_adapter and tts.trained_voices == ()
    assert tts._voice_of("Hello.", "somebody") == ("somebody", "Hello.")  # it may know anybody
    assert tts._voice_of("tara: Hello.", None) == ("tara", "Hello.")
    assert tts.provenance["model"]["adapted_modules"] == 35


def test_an_adapter_that_names_no_base(without_json):
    config = json.loads((without_json / "adapter_config.json").read_text())
    for name in (None, "", 7):
        (without_json / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        with pytest.raises(UserError, match="does not say which, so name the base"):
            OrpheusInference(without_json)
    assert OrpheusInference(without_json, base=TINY.base).codec.name == TINY.codec


def test_an_adapter_on_the_hub(without_json, monkeypatch):
    """One that is in the cache is used; one that can't be had is one line."""
    asked = []

    def cached(hub_id, allow_patterns):
        asked.append((hub_id, *allow_patterns))
        return str(without_json)

    with pytest.raises(UserError, match="adapter 'somebody/voice' can't be had.*hf download somebody/voice"):
        adapter_folder("somebody/voice")
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    assert adapter_folder("somebody/voice") == without_json
    assert asked == [("somebody/voice", "adapter_config.json", "adapter_model.safetensors", FILE_NAME)]
    for name in ("lora_model_of_nobody", "./somebody/voice", "a/b/c"):
        with pytest.raises(UserError, match="there is no adapter in"):
            adapter_folder(name)
    shutil.rmtree(without_json)
