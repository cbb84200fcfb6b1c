"""Export: merged weights, the check, and what the .gguf writer computes. No optional package is needed."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orpheus.cli import one_line_errors
from orpheus.config import PRESETS
from orpheus.engines.choose import known_of
from orpheus.errors import MissingPackage, UserError
from orpheus.export import command as export
from orpheus.export import gguf as gguf_file
from orpheus.export.check import LIMITS, ROUNDING, Spoken, compare, speak, told
from orpheus.export.command import ExportOptions, find_source, unfinished
from orpheus.export.merged import Source, export_merged, torch_scores
from orpheus.model.adapter import attach_adapter
from orpheus.model.base import load_base
from orpheus.model.provenance import Provenance, own_sampling
from orpheus.speak.inference import OrpheusInference
from tests.support.tiny import build_base, build_tokenizer
from tests.support.voices import ScriptedEngine, save_random_adapter, some_codes

TINY = PRESETS["tiny"]
IDS = [262, 256, 40, 41, 258, 263, 264, 260, 400, 4800, 9000]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, base_dir, codec_dir):
    """An adapter of one named voice on the random base."""
    return save_random_adapter(tmp_path_factory.mktemp("trained"), base_dir, codec_dir, ["elise"])


@pytest.fixture(scope="module")
def merged_dir(tmp_path_factory, trained):
    """It, merged, in 32 bit. The random base leaves its slots, so it is not checked."""
    out = tmp_path_factory.mktemp("merged") / "voice"
    export.main(ExportOptions(adapter=str(trained), out=out, dtype="float32", check=False))
    return out


# ---- merged ----


def test_merged_logits_are_those_of_base_and_adapter(base_dir, trained, merged_dir):
    base = torch_scores(load_base(str(base_dir), load_in_4bit=False))(IDS)
    adapted = torch_scores(attach_adapter(load_base(str(base_dir), load_in_4bit=False), trained))(IDS)
    again = torch_scores(load_base(str(merged_dir), load_in_4bit=False))(IDS)
    np.testing.assert_allclose(again, adapted, atol=2e-5 * adapted.std(), rtol=0)
    assert np.abs(adapted - base).max() > 0.1 * base.std()  # the adapter does something


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_merged_in_16_bit_differs_by_its_rounding_alone(dtype, base_dir, trained, tmp_path):
    export.main(ExportOptions(adapter=str(trained), out=tmp_path / "m", dtype=dtype, check=False))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == dtype
    adapted = torch_scores(attach_adapter(load_base(str(base_dir), load_in_4bit=False), trained))(IDS)
    again = torch_scores(load_base(str(tmp_path / "m"), load_in_4bit=False))(IDS)
    assert np.sqrt(np.mean((again - adapted) ** 2)) < LIMITS[dtype] * adapted.std()


@pytest.mark.parametrize("wish", [False, True])
def test_merged_in_4_bit_is_the_merged_model_quantised(wish, trained, tmp_path):
    export.main(ExportOptions(adapter=str(trained), out=tmp_path / "m", dtype="4bit", check=False))
    assert [path.name for path in tmp_path.iterdir()] == ["m", "m.check.json"]
    again = load_base(str(tmp_path / "m"), load_in_4bit=wish)
    layer = again.model.model.layers[0].mlp.up_proj
    assert again.in_4bit and layer.weight.dtype == torch.uint8 and layer.compute_dtype == torch.float32
    assert again.model.generation_config.eos_token_id == again.layout.end_of_speech
    export.main(ExportOptions(adapter=str(trained), out=tmp_path / "whole", check=False))
    quantised = torch_scores(load_base(str(tmp_path / "whole"), load_in_4bit=True))(IDS)
    np.testing.assert_array_equal(torch_scores(again)(IDS), quantised)
    assert OrpheusInference(None, base=str(tmp_path / "m")).trained_voices == ("elise",)


def test_the_base_is_never_taken_in_4_bit(trained, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "orpheus.export.merged.load_base", lambda *a, **k: asked.append(k["load_in_4bit"]) or load_base(*a, **k)
    )
    options = json.loads((trained / "orpheus.json").read_text())
    assert options["config"] == {}
    export.main(ExportOptions(adapter=str(trained), out=tmp_path / "m", check=False))
    assert asked == [False]
    stored = replace(load_base(options["base"], load_in_4bit=False), in_4bit=True)
    monkeypatch.setattr("orpheus.export.merged.load_base", lambda *a, **k: stored)
    with pytest.raises(UserError, match="stored in 4 bit.*unquantised base with --base"):
        export.main(ExportOptions(adapter=str(trained), out=tmp_path / "n"))


def test_a_merged_folder_knows_codec_and_voices(merged_dir, codec_dir, trained, base_dir):
    tts = OrpheusInference(None, base=str(merged_dir))
    assert (tts.has_adapter, tts.trained_voices, tts.base_voices) == (True, ("elise",), ())
    assert tts.codec.name == str(codec_dir) and tts._rows(["Hi"], None, export_sampling())[0].voice == "elise"
    made, before = known_of(str(merged_dir)), Provenance.load(trained)
    assert made.merged_from == trained.name and made.base == str(base_dir)
    assert f"--base {trained.name} --voice elise" in (merged_dir / "README.md").read_text(encoding="utf-8")
    assert (made.layout, made.codec_identity) == (before.layout, before.codec_identity)
    eos = json.loads((merged_dir / "generation_config.json").read_text())["eos_token_id"]
    assert eos == made.layout.end_of_speech


def test_an_exported_model_keeps_its_base_s_own_sampling_and_words(base_dir, codec_dir, tmp_path):
    own = {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.0}
    base = shutil.copytree(base_dir, tmp_path / "base")
    (base / "generation_config.json").write_text(json.dumps({"do_sample": True, **own}))
    (base / "words.txt").write_text("anna\nlike\n")
    source = Source(base=str(base), folder=None, codec=str(codec_dir), made=None, device="cpu")
    assert source.provenance(source.load()).sampling == own  # what a .gguf file holds
    export_merged(source, tmp_path / "merged", "bfloat16", check=False)
    made = known_of(str(tmp_path / "merged"))
    assert own_sampling(tmp_path / "merged") == made.sampling == own and made.words == ("anna", "like")
    again = Source(base=str(tmp_path / "merged"), folder=None, codec=str(codec_dir), made=made, device="cpu")
    assert again.provenance(again.load()).words == made.words
    tts = OrpheusInference(None, base=str(tmp_path / "merged"))
    assert tts.unknown_words("Anna, pizza?") == ["pizza"]


def export_sampling():
    from orpheus.config import SamplingOptions

    return SamplingOptions()


def test_plain_text_stays_plain_text(adapter_dir, base_dir, tmp_path):
    """An adapter without voices on a base with some: the merged model must not ask for one of the base's."""
    import shutil

    folder = shutil.copytree(adapter_dir, tmp_path / "plain")
    made = replace(Provenance.load(folder), base_voices=("tara", "leo"))
    made.save(folder)
    export.main(ExportOptions(adapter=str(folder), out=tmp_path / "m", check=False))
    tts = OrpheusInference(None, base=str(tmp_path / "m"))
    assert tts._rows(["Hi"], None, export_sampling())[0].voice is None and tts.voices == ("tara", "leo")


def test_an_adapter_is_not_added_twice(trained, merged_dir):
    with pytest.raises(UserError, match=f"has the adapter {trained.name} inside already"):
        OrpheusInference(trained, base=str(merged_dir))


def test_another_codec_is_refused(merged_dir):
    with pytest.raises(UserError, match="trained with another codec"):
        OrpheusInference(None, base=str(merged_dir), codec=TINY.codec)


def test_an_export_in_4_bit_is_checked_too(tmp_path, capsys):
    export.main(ExportOptions(preset="tiny", out=tmp_path / "small", dtype="4bit"))
    assert "50 frames" in capsys.readouterr().out
    record = json.loads((tmp_path / "small.check.json").read_text())
    assert record["kind"] == "4bit" and 0.02 < record["scores_differ_by"] < record["limit"]
    speech = OrpheusInference(None, base=str(tmp_path / "small")).generate("The cat likes the garden.", "tara", seed=1)
    assert speech[0].finish_reason == "end_of_speech"


def test_an_export_is_checked_against_its_source(tmp_path, capsys):
    adapter = save_random_adapter(tmp_path / "adapter", TINY.base, TINY.codec, ["tara"], std=0.01)
    export.main(ExportOptions(adapter=str(adapter), out=tmp_path / "m"))
    record = json.loads((tmp_path / "m.check.json").read_text())
    assert record["checked"] and 0 < record["scores_differ_by"] <= record["limit"] == LIMITS["bfloat16"]
    assert record["frames_in_their_slots"] >= 50 and record["greedy_ids"] > 7
    assert record["utterances_that_left_them"] == 0
    out = capsys.readouterr().out
    assert "every id in its slot" in out and f"--base {tmp_path / 'm'}" in out
    speech = OrpheusInference(None, base=str(tmp_path / "m")).generate("The cat sat.", seed=1)[0]
    assert speech.voice == "tara" and speech.finish_reason == "end_of_speech" and speech.duration_s > 0.3


def test_what_fails_the_check_leaves_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(LIMITS, "bfloat16", -1.0)
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        export.main(ExportOptions(preset="tiny", out=tmp_path / "m"))
    assert stopped.value.code == 2 and list(tmp_path.iterdir()) == []
    assert "error: the export differs from its source: scores by 0.0000" in capsys.readouterr().err


# ---- the check ----


def test_speaking_collects_fifty_frames_and_the_greedy_ids(layout):
    ids = [*layout.flatten(some_codes(6)).tolist(), layout.end_of_speech]
    fed = []
    spoken = speak(ScriptedEngine(layout, [ids]), lambda x: fed.append(x) or np.zeros((len(x), 3)), [[1, 2, 3]])
    assert (spoken.frames, spoken.utterances, spoken.ids, spoken.prompt) == (50, 9, ids, [1, 2, 3])
    assert fed == [[1, 2, 3, *ids[:-1]]]


def test_ids_out_of_their_slots_are_held_against_the_source(layout):
    """What the source scores as the export does is its own way to speak: reported. What it does not is refused."""
    ids = layout.flatten(some_codes(6)).tolist()
    bad = ids[1]  # an id of slot 1 where slot 0 should follow
    rng = np.random.default_rng(0)
    row = rng.normal(size=layout.audio_end).astype(np.float32)
    row[bad] = row.max() + 1

    def scores(context):
        return np.tile(row, (len(context), 1))

    def lower(context):
        mine = scores(context)
        mine[:, bad] = -9
        return mine

    whole = [*ids, layout.end_of_speech]
    for end in ([bad], [ids[0], layout.end_of_speech], [layout.pad]):
        engine = ScriptedEngine(layout, [[*ids, *end]])
        spoken = speak(engine, scores, [[1, 2, 3]])
        assert (spoken.frames, spoken.utterances) == (50, 9) and len(spoken.left) == 8
        assert spoken.left[0].before == [1, 2, 3, *ids, *end[:-1]] and spoken.left[0].token_id == end[-1]
    spoken = speak(ScriptedEngine(layout, [[*ids, bad]]), scores, [[1, 2, 3]])
    held = Spoken([1], [bad], scores([1]), 50, 9, spoken.left)
    figures = compare(held, scores, "bfloat16", True)
    assert figures["utterances_that_left_them"] == 8 and "8 of them ended by an id out of its slot" in told(figures)
    alone = Spoken([1], [int(lower([1])[0].argmax())], lower([1]), 50, 9, spoken.left)
    for kind, advice in (("bfloat16", "--dtype float32"), ("Q4_K_M", "--type Q8_0")):
        with pytest.raises(UserError, match="leaves its slots where its source does not: id .*") as refused:
            compare(alone, lower, kind, True)
        assert advice in str(refused.value)
    assert speak(ScriptedEngine(layout, [whole]), scores, [[1]]).left == ()
    with pytest.raises(UserError, match="only 0 frames in 30 utterances"):
        speak(ScriptedEngine(layout, [[layout.end_of_speech]]), None, [[1]])


def test_comparing_finds_differences_and_lets_ties_pass():
    rng = np.random.default_rng(0)
    source = rng.normal(size=(5, 1000)).astype(np.float32)
    source /= source.std()
    best = source.argmax(axis=1)

    def run(ids=best[2:], scores=source, kind="F16", exact=True):
        return compare(Spoken([1, 2, 3], list(ids), scores, 50, 1), lambda _: source, kind, exact)

    assert (run()["greedy_ids_same"], run()["scores_differ_by"], run()["largest_tie"]) == (3, 0, 0)
    near = source + 0.8 * LIMITS["F16"] * rng.choice([-1, 1], size=source.shape)
    assert 0.7 * LIMITS["F16"] < run(scores=near)["scores_differ_by"] < 0.9 * LIMITS["F16"]
    far = source + 1.2 * LIMITS["F16"] * rng.choice([-1, 1], size=source.shape)
    with pytest.raises(UserError, match="the export differs from its source"):
        run(scores=far)
    assert run(scores=far, exact=False)["limit"] == LIMITS["F16"] + ROUNDING
    with pytest.raises(UserError, match="1 of 3 ids"):
        run(ids=[*best[2:4], source[4].argsort()[-9]])
    source[4, 7] = source[4].max() - LIMITS["F16"] / 2  # a near tie
    tied = run(ids=[*best[2:4], 7])
    assert tied["greedy_ids_same"] == 2 and 0 < tied["largest_tie"] < LIMITS["F16"]
    with pytest.raises(UserError, match="differs"):
        run(scores=np.full_like(source, np.nan))


# ---- what is asked for ----


def test_what_can_not_be_exported_is_said_before_any_work(trained, base_dir, codec_dir, tmp_path, monkeypatch):
    def refused(says, **options):
        with pytest.raises(UserError, match=says):
            export.main(ExportOptions(**{"out": tmp_path / "out", **options}))

    refused("name what to export: --adapter lora_model")
    refused("can't read bitsandbytes' 4 bit", preset="tiny", to="tensorrt-llm", dtype="4bit")
    refused("no adapter in", adapter=str(tmp_path))
    refused("is not known: name it with --codec", base=str(base_dir))
    refused(f"{tmp_path} exists already", out=tmp_path, adapter=str(trained))
    refused("float16 can't: use bfloat16", base=str(huge(tmp_path / "huge")), codec=str(codec_dir), dtype="float16")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["huge"]
    for package, says in (
        ("gguf", "pip install -r requirements-engines.txt"),
        ("llama_cpp", "pip install llama-cpp-python==0.3.36"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            if package == "llama_cpp":
                patch.setitem(sys.modules, "gguf", SimpleNamespace())
            with pytest.raises(MissingPackage, match=says):
                export.main(ExportOptions(adapter=str(trained), to="gguf", out=tmp_path / "v.gguf"))
    assert find_source(ExportOptions(adapter=str(trained), codec="other/codec")).codec == "other/codec"


def huge(folder):
    """A base with a number that float16 has not."""
    tokenizer = build_tokenizer()
    from orpheus.format.tokens import TokenLayout

    model = build_base(TokenLayout.from_tokenizer(tokenizer))
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_interrupted_export_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), unfinished(tmp_path / "deep" / "out") as partial:
        partial.mkdir()
        (partial / "half").touch()
        raise KeyboardInterrupt
    assert list((tmp_path / "deep").iterdir()) == []


# ---- what the .gguf writer computes ----


def test_rope_factors_are_those_of_transformers(layout):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = build_base(layout).config
    for dim in (16, 64, 128):
        config.head_dim = dim
        rope = config.rope_parameters
        plain = 1 / rope["rope_theta"] ** (torch.arange(0, dim, 2) / dim)
        factors = gguf_file.rope_factors(rope, dim)
        assert factors.min() == 1 and (dim == 16 or factors.max() == rope["factor"])
        torch.testing.assert_close(plain / torch.from_numpy(factors), LlamaRotaryEmbedding(config).inv_freq)
    assert gguf_file.rope_factors({"rope_type": "default"}, 64) is None


def test_rows_of_q_and_k_pair_neighbours():
    """Turning neighbours after the change of rows is turning halves before it."""
    heads, dim, width = 3, 8, 5
    weight, x, angle = torch.randn(heads * dim, width), torch.randn(width), torch.randn(dim // 2)
    q = (weight @ x).view(heads, dim)
    first, second = q[:, : dim // 2], q[:, dim // 2 :]
    halves = torch.stack([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])
    p = (gguf_file.interleaved(weight, heads) @ x).view(heads, dim)
    a, b = p[:, 0::2], p[:, 1::2]
    torch.testing.assert_close(
        torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()]), halves
    )


def test_names_and_tokenizers(base_dir):
    assert gguf_file.gguf_name("model.layers.12.mlp.down_proj.weight") == "blk.12.ffn_down.weight"
    assert gguf_file.gguf_name("model.norm.weight") == "output_norm.weight"
    loaded = load_base(TINY.base, load_in_4bit=False)
    gguf_file.check_exportable(loaded)
    data = json.loads(loaded.tokenizer.backend_tokenizer.to_str())
    assert gguf_file.pre_tokenizer(data) == "llama-bpe"
    data["model"]["ignore_merges"] = False
    assert gguf_file.pre_tokenizer(data) == "smaug-bpe"
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+"
    with pytest.raises(UserError, match="tokenizer splits text in a way.*--to merged"):
        gguf_file.pre_tokenizer(data)
    loaded.model.config.attention_bias = True
    with pytest.raises(UserError, match=r"no plain Llama \(llama, silu, attention_bias\)"):
        gguf_file.check_exportable(loaded)
