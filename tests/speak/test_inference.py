"""Speaking: stop rules, stream equals whole, batches, seeds, voices, files."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orpheus.config import SamplingOptions
from orpheus.errors import UserError
from orpheus.format.tokens import Codes
from orpheus.model.provenance import own_sampling
from orpheus.speak.inference import NoSpeech, OrpheusInference
from orpheus.speak.names import output_paths
from orpheus.speak.utterance import FADE_S, fade_out
from tests.support.voices import ScriptedEngine, save_random_adapter, some_codes


@pytest.fixture
def scripted(tts, layout, monkeypatch):
    """A function that makes `tts` speak scripted ids."""

    def use(*scripts):
        engine = ScriptedEngine(layout, scripts)
        monkeypatch.setattr(tts, "engine", engine)
        return engine

    return use


def ids_of(layout, codes: Codes, *tail: int) -> list[int]:
    return [*layout.flatten(codes).tolist(), *tail]


def test_a_whole_utterance(tts, layout, scripted):
    codes = some_codes(5)
    scripted(ids_of(layout, codes, layout.end_of_speech))
    speech = tts.generate("Hello.", seed=3)[0]
    assert (speech.finish_reason, speech.text, speech.seed) == ("end_of_speech", "Hello.", 3)
    np.testing.assert_allclose(speech.samples, fade_out(tts.codec.decode(codes, seed=3)), atol=1e-5)
    assert speech.samples.dtype == np.float32 and np.abs(speech.samples).max() <= 1
    assert speech.rate_hz == 24000 and speech.duration_s == pytest.approx(5 * 2048 / 24000)
    assert speech.timings.tokens == 36 and 0 < speech.timings.first_audio_s <= speech.timings.total_s


@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_short_utterances_come_out_whole(tts, layout, scripted, frames):
    """Defect 4: under four frames the usual sliding window yields nothing."""
    scripted(ids_of(layout, some_codes(frames), layout.end_of_speech))
    assert len(tts.generate("Hi", seed=0)[0].samples) == frames * 2048


@pytest.mark.parametrize("bad_slot", range(7))
def test_it_stops_at_the_first_bad_id_and_keeps_what_came_before(tts, layout, scripted, bad_slot):
    """The user's rule: nothing is clamped, nothing after the bad frame is decoded, the result says why."""
    codes = some_codes(6)
    ids = ids_of(layout, codes, layout.end_of_speech)
    ids[4 * 7 + bad_slot] = layout.slot_range((bad_slot + 1) % 7)[5]
    scripted(ids)
    speech = tts.generate("Hello", seed=1)[0]
    assert speech.finish_reason == "out_of_range"
    assert f"at {28 + bad_slot}" in speech.finish_detail and f"slot {bad_slot} allows" in speech.finish_detail
    assert speech.codes.frames == 4
    whole = tts.codec.decode(codes.slice(0, 4), seed=1)
    fade = int(FADE_S * 24000)
    assert fade == 120 and len(speech.samples) == len(whole)
    np.testing.assert_allclose(speech.samples[:-fade], whole[:-fade], atol=1e-5)
    assert speech.samples[-1] == 0 and np.all(np.abs(speech.samples[-fade:]) <= np.abs(whole[-fade:]) + 1e-6)


def test_the_end_is_silent(tts, layout, scripted):
    """The codec's last samples see nothing but padding after them: the embedded one ends at 0.07."""
    scripted(ids_of(layout, some_codes(6), layout.end_of_speech))
    speech = tts.generate("Hello", seed=1)[0]
    assert speech.finish_reason == "end_of_speech" and speech.samples[-1] == 0
    assert np.array_equal(speech.samples, np.concatenate(list(tts.stream("Hello", seed=1))))


def test_running_into_the_limit_is_said(tts, layout, scripted):
    scripted(ids_of(layout, some_codes(5)))
    speech = tts.generate("Hello", seed=1, max_new_tokens=31)[0]
    assert speech.finish_reason == "max_new_tokens" and speech.codes.frames == 4
    assert "the 3 ids of the unfinished last frame were dropped" in speech.finish_detail


def test_an_end_in_the_middle_of_a_frame(tts, layout, scripted):
    ids = ids_of(layout, some_codes(3))[:17]
    scripted([*ids, layout.end_of_speech])
    speech = tts.generate("Hello", seed=1)[0]
    assert speech.finish_reason == "end_of_speech" and speech.codes.frames == 2


@pytest.mark.parametrize("first", ["end_of_speech", "pad", "bos"])
def test_no_frame_is_an_error_not_silence(tts, layout, scripted, first):
    """Defect 16: no fallback to silence or a beep."""
    scripted([getattr(layout, first)])
    with pytest.raises(NoSpeech, match="no audio for 'Hello'.*at 0"):
        tts.generate("Hello")
    scripted([getattr(layout, first)])
    with pytest.raises(NoSpeech):
        list(tts.stream("Hello"))


def test_stream_chunks_are_generate_s_samples(tts, layout, scripted):
    for tail in (layout.end_of_speech, layout.pad):
        ids = ids_of(layout, some_codes(9), tail)
        scripted(ids)
        chunks = list(tts.stream("Hello", seed=5))
        scripted(ids)
        assert np.array_equal(np.concatenate(chunks), tts.generate("Hello", seed=5)[0].samples)
        assert len(chunks) > 5 and all(c.dtype == np.float32 and c.ndim == 1 for c in chunks)


def test_the_first_chunk_comes_after_three_frames(tts, layout, scripted, monkeypatch):
    taken = []
    engine = scripted(ids_of(layout, some_codes(9), layout.end_of_speech))
    inner = engine.stream
    monkeypatch.setattr(engine, "stream", lambda *a: (taken.append(t) or t for t in inner(*a)))
    stream = tts.stream("Hello", seed=0)
    first = next(stream)
    assert len(taken) == 21 and len(first) > 0
    stream.close()


def test_closing_the_stream_stops_the_engine(tts, layout, scripted):
    engine = scripted(ids_of(layout, some_codes(9), layout.end_of_speech))
    stream = tts.stream("Hello", seed=0)
    next(stream)
    stream.close()
    del stream
    assert engine.closed


def test_rows_of_a_batch_end_by_themselves(tts, layout, scripted):
    """Defect 7: rows cut at the last row's marker, or kept going on pads."""
    parts = [some_codes(n, seed=n) for n in (2, 7, 4)]
    scripted(*(ids_of(layout, c, layout.end_of_speech) for c in parts))
    speeches = tts.generate(["one", "two", "three"], seed=10)
    assert [s.codes.frames for s in speeches] == [2, 7, 4] and [s.seed for s in speeches] == [10, 11, 12]
    for speech, codes in zip(speeches, parts, strict=True):
        np.testing.assert_allclose(speech.samples, fade_out(tts.codec.decode(codes, speech.seed)), atol=1e-5)


def test_the_frames_of_a_batch_are_decoded_together(tts, layout, scripted, monkeypatch):
    scripted(*(ids_of(layout, some_codes(n, seed=n), layout.end_of_speech) for n in (2, 4, 4)))
    together, push_many = [], tts.codec.push_many
    monkeypatch.setattr(tts.codec, "push_many", lambda s, c: (together.append(len(s)), push_many(s, c))[1])
    tts.generate(["one", "two", "three"], seed=10)
    assert [n for n in together if n] == [3, 3, 2, 2]


def test_rows_may_come_in_any_order(tts, layout, monkeypatch):
    """As the engines' protocol says: one after the other here; each is what it is alone."""
    parts = [some_codes(n, seed=n) for n in (3, 5, 4)]

    class OneByOne(ScriptedEngine):
        def stream(self, *arguments):
            return iter(sorted(super().stream(*arguments), key=lambda pair: -pair[0]))

    scripts = [ids_of(layout, codes, layout.end_of_speech) for codes in parts]
    monkeypatch.setattr(tts, "engine", OneByOne(layout, scripts))
    for speech, codes in zip(tts.generate(["one", "two", "three"], seed=10), parts, strict=True):
        np.testing.assert_allclose(speech.samples, fade_out(tts.codec.decode(codes, speech.seed)), atol=1e-5)


def test_one_silent_row_does_not_lose_the_others(tts, layout, scripted, tmp_path):
    scripted(ids_of(layout, some_codes(2), layout.end_of_speech), [layout.end_of_speech])
    with pytest.raises(NoSpeech, match="'bad'"):
        tts.generate(["good", "bad"], output_dir=tmp_path)
    assert [p.name for p in sorted(tmp_path.glob("*.wav"))] == ["output_0.wav"]


def test_files_are_24_khz_mono_and_numbered(tts, layout, scripted, tmp_path):
    def speak(**options):
        scripted(*[ids_of(layout, some_codes(2), layout.end_of_speech)] * 2)
        return tts.generate(["a", "b"], output_dir=tmp_path, seed=4, **options)

    speak()
    speak()  # never overwrites unasked: goes on numbering
    assert sorted(p.name for p in tmp_path.glob("*.wav")) == [f"output_{i}.wav" for i in range(4)]
    speak(overwrite=True)
    assert len(list(tmp_path.glob("*.wav"))) == 4
    with wave.open(str(tmp_path / "output_0.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (24000, 1, 2, 4096)
    made = json.loads((tmp_path / "output_0.json").read_text())
    assert made["text"] == "a" and made["seed"] == 4 and made["finish_reason"] == "end_of_speech"
    assert made["sampling"]["temperature"] == 0.6 and made["model"]["codec_identity"].startswith("snac-")


def test_output_paths_go_on_after_the_highest(tmp_path):
    for name in ("output_3.wav", "output_10.wav", "output_x.wav", "other.wav"):
        (tmp_path / name).touch()
    assert [p.name for p in output_paths(tmp_path, 2, overwrite=False)] == ["output_11.wav", "output_12.wav"]
    assert [p.name for p in output_paths(tmp_path, 1, overwrite=True)] == ["output_0.wav"]
    assert [p.name for p in output_paths(tmp_path / "new", 1, overwrite=False)] == ["output_0.wav"]


def test_fades_are_at_most_5_ms():
    assert fade_out(np.ones(0, np.float32)).shape == (0,)
    short, long = fade_out(np.ones(50, np.float32)), fade_out(np.ones(500, np.float32))
    assert short[0] == 1 and short[-1] == 0 and long[-1] == 0 and np.all(long[:380] == 1)


def test_voices(tts, adapter_dir, base_dir, codec_dir, tmp_path, monkeypatch):
    def prompt_of(model, text, voice=None):
        return model._rows([text], voice, SamplingOptions())[0]

    from orpheus.config import SamplingOptions

    assert prompt_of(tts, "Hi").voice is None  # trained on plain text: plain prompts
    one = OrpheusInference(save_random_adapter(tmp_path / "one", base_dir, codec_dir, ["elise"]))
    assert prompt_of(one, "Hi").voice == "elise"  # one voice: no need to name it
    assert prompt_of(one, "Hi", voice="").voice is None  # plain text on request
    two = OrpheusInference(save_random_adapter(tmp_path / "two", base_dir, codec_dir, ["ann", "bob"]))
    with pytest.raises(UserError, match="several voices.*ann, bob"):
        two.generate("Hi")
    assert prompt_of(two, "bob: Hi").voice == "bob" and prompt_of(two, "bob: Hi").text == "Hi"
    monkeypatch.setattr(two, "base_voices", ("tara",))
    with pytest.raises(UserError, match="unknown voice 'bo'.*ann, bob, tara"):
        two.generate("Hi", voice="bo")


@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(prompts=[]), "nothing to speak"),
        (dict(prompts=""), "empty"),
        (dict(prompts=["fine", "..."]), "no letter"),
        (dict(prompts="Hi", temperature=-1), "temperature is -1"),
        (dict(prompts="Hi", top_p=0), "top_p is 0"),
        (dict(prompts="Hi", repetition_penalty=float("nan")), "repetition_penalty is nan"),
        (dict(prompts="Hi", max_new_tokens=0), "max_new_tokens is 0"),
        (dict(prompts="Hi", seed=-1), "seed is -1"),
        (dict(prompts="word " * 4000), "the prompt has .* tokens .*context of 16384"),
    ],
)
def test_bad_requests_are_one_clear_line(tts, arguments, says):
    with pytest.raises(UserError, match=says):
        tts.generate(**arguments)


def test_a_torn_off_adapter_names_what_is_missing(tmp_path, adapter_dir, base_dir):
    import shutil

    with pytest.raises(UserError, match="no adapter.*orpheus_sft_unsloth.py"):
        OrpheusInference(tmp_path)
    plain = tmp_path / "plain"
    shutil.copytree(adapter_dir, plain)
    (plain / "orpheus.json").unlink()
    with pytest.raises(UserError, match="which codec the base .* is not known: name it with --codec"):
        OrpheusInference(plain)
    with pytest.raises(UserError, match="which codec the base .* is not known: name it with --codec"):
        OrpheusInference(plain, base=str(base_dir))
    with pytest.raises(UserError, match="unknown engine"):
        OrpheusInference(adapter_dir, engine="magic")
    with pytest.raises(UserError, match="no CUDA GPU"):
        OrpheusInference(adapter_dir, device="cuda")


def test_notebook_display_and_plot(tts, layout, scripted, tmp_path):
    scripted(ids_of(layout, some_codes(3), layout.end_of_speech))
    speech = tts.generate("<laughs> a & b", seed=0)[0]
    page = speech._repr_html_()
    assert "&lt;laughs&gt; a &amp; b" in page and "<audio controls" in page and "image/png" in page
    speech.plot().savefig(tmp_path / "p.png")
    assert (tmp_path / "p.png").stat().st_size > 5000
    for suffix in ("flac", "mp3", "opus"):
        assert speech.save(tmp_path / f"{suffix}_s.{suffix}").stat().st_size > 100
    with pytest.raises(UserError, match="exists already"):
        speech.save(tmp_path / "flac_s.flac")
    (tmp_path / "notes.json").write_text("mine")
    with pytest.raises(UserError, match=r"notes.json exists already"):
        speech.save(tmp_path / "notes.wav")
    assert (tmp_path / "notes.json").read_text() == "mine" and not (tmp_path / "notes.wav").exists()


def test_a_full_disk_leaves_nothing_half_written(tts, layout, scripted, tmp_path, monkeypatch):
    import errno
    from pathlib import Path

    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    scripted(ids_of(layout, some_codes(2), layout.end_of_speech))
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        tts.generate("Hi", output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- a base's own sampling ----

OWN = {"temperature": 0.3, "top_p": 0.9, "repetition_penalty": 1.0}


def copied_base(base_dir, folder: Path, **config) -> Path:
    shutil.copytree(base_dir, folder)
    (folder / "generation_config.json").write_text(json.dumps(config))
    return folder


def test_what_nobody_asked_for_is_drawn_as_the_base_wants(base_dir, codec_dir, tmp_path):
    base = copied_base(base_dir, tmp_path / "base", do_sample=True, **OWN)
    own = OrpheusInference(None, base=str(base), codec=str(codec_dir))
    (speech,) = own.generate("Hello.", seed=1, top_p=0.95, max_new_tokens=50, decoding="framed")
    drawn = speech.provenance["sampling"]
    assert (drawn["temperature"], drawn["top_p"], drawn["repetition_penalty"]) == (0.3, 0.95, 1.0)
    again = own.generate("Hello.", seed=1, max_new_tokens=50, decoding="framed", **OWN | {"top_p": 0.95})[0]
    np.testing.assert_array_equal(again.samples, speech.samples)
    for sampling in (None, SamplingOptions(seed=1)):  # streams and servers, evaluations
        assert vars(own.drawn_as(sampling)).items() >= OWN.items()
    assert own.drawn_as(SamplingOptions(temperature=0.6)).temperature == 0.6  # the published one, if it is asked for


@pytest.mark.parametrize("config", [
    {},
    {"do_sample": True, "temperature": 0.3, "top_p": 0.9},  # Llama's, which Orpheus-3B inherited: no penalty
    {"do_sample": False, **OWN},
])  # fmt: skip
def test_other_bases_are_drawn_as_published(base_dir, tmp_path, config):
    assert own_sampling(copied_base(base_dir, tmp_path / "base", **config)) == {} == own_sampling(None)
    assert SamplingOptions(seed=1).over({}) == SamplingOptions(0.6, 0.95, 1.1, seed=1)


@pytest.mark.parametrize("damage", [{"temperature": -1}, {"top_p": "much"}, {"repetition_penalty": [1]}])
def test_a_damaged_sampling_is_named(base_dir, tmp_path, damage):
    base = copied_base(base_dir, tmp_path / "base", do_sample=True, **OWN | damage)
    with pytest.raises(UserError, match=r"generation_config\.json is damaged"):
        own_sampling(base)
    (base / "generation_config.json").write_text("[]")
    with pytest.raises(UserError, match=r"generation_config\.json is damaged"):
        own_sampling(base)


# ---- one file by its name ----

SOME: dict = {"decoding": "framed", "max_new_tokens": 35}  # so that a random model says something


def test_one_text_into_one_file(tts, tmp_path):
    spoken = tts.generate("Hello there.", seed=5, **SOME, output_dir=tmp_path / "new" / "hello.flac")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["hello.flac", "hello.json"]
    assert soundfile.info(tmp_path / "new" / "hello.flac").format == "FLAC"
    assert repr(spoken) == f"[{spoken[0]!r}]" and len(repr(spoken)) < 120
    with pytest.raises(UserError, match=r"hello.flac exists already"):
        tts.generate("Hello there.", seed=5, **SOME, output_dir=tmp_path / "new" / "hello.flac")
    with pytest.raises(UserError, match="and there are 2 texts: name a folder"):
        tts.generate(["One.", "Two."], output_dir=tmp_path / "both.wav")
    (tmp_path / "folder.wav").mkdir()
    tts.generate("Hello there.", seed=5, **SOME, output_dir=tmp_path / "folder.wav")
    assert (tmp_path / "folder.wav" / "output_0.wav").is_file()


def test_formats_of_one_speech_share_the_json(tts, tmp_path):
    one, again, other = (
        tts.generate(text, seed=seed, **SOME)[0] for text, seed in (("One.", 5), ("One.", 5), ("Two.", 6))
    )
    one.save(tmp_path / "a.wav")
    told = (tmp_path / "a.json").read_text()
    again.save(tmp_path / "a.mp3")
    assert (tmp_path / "a.json").read_text() == told
    with pytest.raises(UserError, match=r"a.json exists already"):
        other.save(tmp_path / "a.flac")
    assert not (tmp_path / "a.flac").exists()
    other.save(tmp_path / "a.wav", overwrite=True)  # the MP3 is of another speech, of which nothing would tell now
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.wav"]
    assert json.loads((tmp_path / "a.json").read_text())["text"] == "Two."


def test_short_reprs(tts):
    assert repr(tts).startswith("OrpheusInference(") and len(repr(tts)) < 200
    reading = tts.read("Hello there. " * 50)
    assert repr(reading).startswith("Reading('Hello there. Hello") and len(repr(reading)) < 120
