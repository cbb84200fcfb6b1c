"""Measuring a voice: an engine that plays a script has figures that are known beforehand."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from orpheus.config import SamplingOptions, VoiceOptions
from orpheus.data.seen import seen
from orpheus.errors import MissingPackage, UserError
from orpheus.evaluate import evaluate as module
from orpheus.evaluate.clips import Recording, held_out
from orpheus.evaluate.compare import Comparison, short_names
from orpheus.evaluate.evaluate import EvaluateOptions, default_corpus, domain_texts, main
from orpheus.evaluate.listen import Ears, find_ears
from orpheus.evaluate.measure import evaluate
from orpheus.evaluate.page import sentences
from orpheus.evaluate.report import COPIED, HEARD, KINDS, MIDDLE, SPOKEN, key
from tests.support.codec_fixtures import speech_like
from tests.support.pages import DOCS
from tests.support.voices import ScriptedEngine, some_codes

FRAME_S = 2048 / 24000
TEXTS = ("Hello there, <laughs> you.", "It rained all day.", "What, <sighs> again?", "Good morning.")
KEYS = {key(name, kind) for kind in KINDS for name in (*HEARD, *MIDDLE) if name != "wer_domain"} | set(SPOKEN)
KEYS |= {key(name, kind) for kind in KINDS[1:] for name in COPIED}


class Parrot:
    """A recogniser that always hears the same; `says` it on standard output too, as libraries do."""

    name, language = "parrot", "en"

    def transcribe(self, samples: np.ndarray) -> str:
        print("a line on standard output")
        return "hello there you"


DETECTOR = SimpleNamespace(
    KNOWN_TAGS=("<laughs>", "<sighs>", "<gasps>"), detect_tags=lambda samples: [SimpleNamespace(tag="<laughs>")] * 2
)


@pytest.fixture
def clips() -> list[Recording]:
    return [Recording(f"{i}.wav", text, None, speech_like(0.5 + 0.1 * i, seed=i)) for i, text in enumerate(TEXTS)]


@pytest.fixture
def spoken(tts, layout, monkeypatch):
    """`tts` speaking four utterances: one to its end, one with a wrong id, one without a frame, one without an end."""

    def frames(count: int, *tail: int) -> list[int]:
        return [*layout.flatten(some_codes(count, seed=count)).tolist(), *tail]

    scripts = [frames(5, layout.end_of_speech), frames(3, layout.slot_range(4)[0]), [layout.bos], frames(6)]
    monkeypatch.setattr(tts, "engine", ScriptedEngine(layout, scripts))
    return tts


LIMITED = SamplingOptions(seed=10, max_new_tokens=42)


def test_figures_of_a_known_script(spoken, clips):
    report = evaluate(spoken, clips, Ears(Parrot(), detector=DETECTOR), sampling=LIMITED)
    values = {name: figure.value if figure else None for name, figure in report.figures().items()}
    assert set(values) == KEYS
    # 36 ids to the end, 22 with a wrong one, 1 wrong one at once, 42 to the limit
    assert values["out_of_slot_rate"] == pytest.approx(2 / (36 + 22 + 1 + 42))
    assert values["end_of_speech_share"] == 1 / 4
    assert values["duration_ratio"] == pytest.approx((5 + 3 + 6) * FRAME_S / (0.5 + 0.6 + 0.7 + 0.8))
    # 'hello there you' against 3, 4, 2 and 2 words; the utterance without audio has both its words wrong
    assert values["wer_original"] == pytest.approx((0 + 4 + 3 + 3) / 11)
    assert values["wer_generated"] == pytest.approx((0 + 4 + 2 + 3) / 11)
    # a laugh is heard in every sound: right in the first text, wrong in the others
    assert values["tag_hit_rate"] == values["tag_hit_rate_original"] == 1 / 2
    assert values["tag_false_alarm_rate_original"] == pytest.approx(3 / (2 + 3 + 2 + 3))
    assert values["tag_false_alarm_rate"] == pytest.approx(2 / 10)
    assert values["realtime_factor"] > 0 and report.about["words"] == 11 and report.about["tags"] == 2
    reasons = [row.takes[0].finish_reason for row in report.rows]
    assert reasons == ["end_of_speech", "out_of_range", "out_of_range", "max_new_tokens"]
    silent = report.rows[2].takes[0]
    assert (silent.tokens, silent.heard.seconds, silent.heard.transcript) == (1, 0, "") and not silent.heard.tags


def test_every_take_has_a_seed_of_its_own_and_batches_change_nothing(tts, clips):
    sampling = SamplingOptions(seed=7, max_new_tokens=21)
    whole = evaluate(tts, clips, Ears(), samples=2, sampling=sampling)
    assert sorted(take.seed for row in whole.rows for take in row.takes) == list(range(7, 15))
    single = evaluate(tts, clips, Ears(), samples=2, sampling=sampling, batch_size=1)
    for a, b in zip(whole.rows, single.rows, strict=True):
        assert [(t.seed, t.tokens, t.finish_detail) for t in a.takes] == [(t.seed, t.tokens, t.finish_detail)
                                                                         for t in b.takes]  # fmt: skip


def test_nothing_is_made_up(spoken, clips):
    report = evaluate(spoken, clips[:1], Ears(why={"dnsmos": "DNSMOS needs speechmos"}), sampling=LIMITED)
    missing = {name for name, figure in report.figures().items() if figure is None}
    asked = [name for name in HEARD if name not in ("wer_domain", "letters_per_s", "trailing_silence_s")]
    assert {key(name, kind) for name in asked for kind in KINDS} <= missing
    assert missing | {"*_ci"} == set(report.missing)
    assert "pip install faster-whisper" in report.missing["wer_generated"]
    assert report.missing["dnsmos_original"] == "DNSMOS needs speechmos"
    assert "embedded voices" in report.missing["tag_hit_rate"] and "one clip" in report.missing["*_ci"]


def test_a_tag_that_the_detector_does_not_know_counts_in_neither_rate(spoken, clips):
    strange = [Recording("a.wav", "Well, <yodels> hello.", None, clips[0].samples)] * 2
    report = evaluate(spoken, strange, Ears(detector=DETECTOR), sampling=LIMITED)
    assert report.figures()["tag_hit_rate"] is report.figures()["tag_false_alarm_rate"] is None
    assert "<laughs>, <sighs>, <gasps> alone" in report.missing["tag_hit_rate"]


def test_voices_are_reported_by_themselves(spoken, clips):
    named = [Recording(c.name, c.text, "anna" if i < 2 else "ben", c.samples) for i, c in enumerate(clips)]
    plain = evaluate(spoken, named, Ears(Parrot()), sampling=LIMITED, batch_size=2).as_dict()
    assert set(plain["voices"]) == {"anna", "ben"} and plain["voices"]["anna"]["clips"] == 2
    assert plain["voices"]["anna"]["wer_original"] == pytest.approx(4 / 7)
    assert {f"{name}_ci" for name in KEYS} <= set(plain["voices"]["ben"])


def test_the_pitch_is_that_of_the_sounds(spoken):
    tone = (0.3 * np.sin(2 * np.pi * 150 * np.arange(24000) / 24000)).astype(np.float32)
    report = evaluate(spoken, [Recording("a.wav", "Hello.", None, tone)], Ears(), sampling=LIMITED)
    assert report.figures()["f0_median_hz_original"].value == pytest.approx(150, rel=0.02)
    assert report.figures()["f0_range_st_original"].value < 0.2


def test_a_recording_is_never_compared_with_itself(spoken, clips):
    """Of three clips two are alike: each has the mean of the two others as its target, and so has what was spoken."""
    said = {len(clip.samples): vector for clip, vector in zip(clips, ([1, 0], [1, 0], [0, 1], [0, 1]), strict=True)}
    ears = Ears(embed=lambda samples: np.array(said.get(len(samples), [1, 0]), np.float32))
    report = evaluate(spoken, clips[:3], ears, sampling=LIMITED)
    likeness = [row.original.counts["speaker_similarity"][0] for row in report.rows]
    assert likeness == pytest.approx([0.5**0.5, 0.5**0.5, 0])
    spoken_likeness = [row.takes[0].heard.counts.get("speaker_similarity", (None,))[0] for row in report.rows]
    assert spoken_likeness == [pytest.approx(0.5**0.5), pytest.approx(0.5**0.5), None]  # the third gave no audio
    alone = evaluate(spoken, clips[:1], ears, sampling=LIMITED)
    assert alone.missing["speaker_similarity"] == "no voice has two recordings"


def test_what_is_not_installed_is_left_out_and_named(monkeypatch):
    def absent():
        raise MissingPackage("Resemblyzer", "comparing speakers", "pip install --no-deps Resemblyzer")

    monkeypatch.setattr("orpheus.hearing.speakers._encoder", absent)
    monkeypatch.setattr("orpheus.hearing.quality.dnsmos", lambda samples: 3.0)
    ears = find_ears(Parrot(), None, None)
    assert ears.embed is None and ears.dnsmos and "pip install --no-deps Resemblyzer" in ears.why["speaker"]


def test_rate_and_end_leave_silence_out(spoken, clips):
    """Half a second of speech between silences: the letters are said in that half second."""
    quiet = np.zeros(12000, np.float32)
    padded = Recording("a.wav", "Good morning.", None, np.concatenate([quiet, clips[0].samples[:12000], quiet, quiet]))
    ears = Ears(dnsmos=lambda samples: len(samples) / 24000)
    found = evaluate(spoken, [padded, padded], ears, sampling=LIMITED).figures()
    assert found["trailing_silence_s_original"].value == pytest.approx(1, abs=0.1)
    assert found["letters_per_s_original"].value == pytest.approx(13 / 0.5, rel=0.2)
    assert found["dnsmos_original"].value == 2 and found["dnsmos"].value < 1
    assert found["mel_cepstral_db"].value > 0 and "mel_cepstral_db_original" not in found


# ---- several voices ----


def test_the_first_voice_is_what_the_others_are_compared_with(spoken, layout, clips, monkeypatch):
    clips = [replace(clip, text="Hello there, you.") for clip in clips]
    first = evaluate(spoken, clips, Ears(Parrot()), sampling=LIMITED)
    silent = ScriptedEngine(layout, [[layout.end_of_speech]] * 4)
    monkeypatch.setattr(spoken, "engine", silent)
    other = evaluate(spoken, clips, Ears(), sampling=LIMITED, like=first)
    assert all(a.original is b.original for a, b in zip(first.rows, other.rows, strict=True))  # heard once
    comparison = Comparison({"base": first, "mine": evaluate(spoken, clips, Ears(Parrot()), sampling=LIMITED)})
    change = comparison.differences["mine"]["end_of_speech_share"]
    assert change.value == -1 / 4 and change.interval[0] < -1 / 4 <= change.interval[1]
    assert comparison.columns() == ["original", "reconstruction", "base", "mine", "mine - base"]
    table = comparison.table()
    assert "-0.25 [" in table and "mine is worse in word error rate than base" in table
    plain = comparison.as_dict()
    assert plain["wer_generated"] == first.as_dict()["wer_generated"]
    assert plain["compared"]["mine"]["wer_generated"] == 1 and plain["differences"]["mine"]["wer_generated_ci"]


def test_a_base_without_the_voice_speaks_as_its_first(spoken, clips, monkeypatch):
    named = [replace(clip, voice="anna") for clip in clips]
    assert evaluate(spoken, named, Ears(), sampling=LIMITED).about["speaks_as"] is None  # it takes the text alone
    monkeypatch.setattr(spoken, "has_adapter", False)
    monkeypatch.setattr(spoken, "base_voices", ("leo", "tara"))
    report = evaluate(spoken, named, Ears(), sampling=LIMITED)
    assert report.about["speaks_as"] == "leo" and "it speaks as leo" in sentences("base", report)[0]
    assert evaluate(spoken, [replace(clip, voice="tara") for clip in clips], Ears(), sampling=LIMITED).about[
        "speaks_as"] is None  # fmt: skip


def test_what_is_not_sure_is_not_said(spoken, clips):
    first = evaluate(spoken, clips, Ears(Parrot()), sampling=LIMITED)
    same = Comparison({"a": first, "b": first})
    assert same.sure("b") == "No difference between b and a is sure on these clips."


def test_names_are_as_short_as_can_be():
    assert short_names([None, "runs/one", "owner/two"]) == ["base", "one", "two"]
    assert short_names(["a/lora_model", "b/lora_model", "c"]) == ["a/lora_model", "b/lora_model", "c"]


# ---- choosing clips ----


def corpus(folder: Path, voices: str) -> str:
    """Recordings of 0.4 s, one for each word of `voices`; '-' has no voice."""
    folder.mkdir()
    lines = ["file_name,text,source"]
    for i, voice in enumerate(voices.split()):
        soundfile.write(folder / f"{i}.wav", speech_like(0.4, seed=i), 24000)
        lines.append(f"{i}.wav,Sentence number {i}.,{voice.strip('-')}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return str(folder)


def voice_of(tts, has_adapter: bool, trained=(), base=()):
    return SimpleNamespace(codec=tts.codec, renderer=tts.renderer, has_adapter=has_adapter, trained_voices=trained,
                           base_voices=base)  # fmt: skip


def chosen(*arguments, **options) -> list[str]:
    return [f"{clip.voice}{clip.name[0]}" for clip in held_out(*arguments, **options)]


def test_clips_are_those_of_the_model_s_voices(tts, tmp_path):
    mixed = corpus(tmp_path / "mixed", "anna ben anna ben carl")
    assert chosen(mixed, voice_of(tts, True, ("ben",), ("anna",))) == ["ben1", "ben3"]
    assert chosen(mixed, voice_of(tts, False, (), ("anna", "carl"))) == ["anna0", "anna2", "carl4"]
    assert chosen(mixed, voice_of(tts, False, (), ("anna",)), voice="carl") == ["carl4"]
    assert chosen(mixed, voice_of(tts, False, (), ("anna", "ben", "carl")), limit=3) == ["anna0", "ben1", "carl4"]
    assert chosen(corpus(tmp_path / "plain", "- -"), voice_of(tts, True, ("ben",))) == ["None0", "None1"]


def test_clips_that_fit_no_voice_are_a_mistake(tts, tmp_path):
    mixed = corpus(tmp_path / "mixed", "anna ben")
    with pytest.raises(UserError, match="spoken by zoe: it has anna, ben; name one of them by --voice"):
        held_out(mixed, voice_of(tts, True, ("zoe",)))
    with pytest.raises(UserError, match="several voices.*anna, ben by --voice"):
        held_out(mixed, voice_of(tts, True))
    for file in (tmp_path / "mixed").glob("*.wav"):
        soundfile.write(file, np.zeros(9600), 24000)
    with pytest.raises(UserError, match="none of the clips"):
        held_out(mixed, voice_of(tts, True, ("ben",)))


def test_the_default_clips(adapter_dir):
    assert default_corpus(VoiceOptions(adapter=None, preset="tiny")) == "embedded:test_corpus"
    for other in (VoiceOptions(adapter=None, preset="orpheus-3b"), VoiceOptions(adapter=str(adapter_dir))):
        with pytest.raises(UserError, match="--corpus"):
            default_corpus(other)


def test_domain_texts(tmp_path):
    (tmp_path / "a.txt").write_text("One.\nTwo.\n", encoding="utf-8")
    assert domain_texts(str(tmp_path / "a.txt")) == ["One.", "Two."]
    assert domain_texts(corpus(tmp_path / "folder", "anna ben")) == ["Sentence number 0.", "Sentence number 1."]
    with pytest.raises(UserError, match="can't read"):
        domain_texts(str(tmp_path / "b.txt"))


# ---- the program ----


@pytest.fixture
def program(spoken, tmp_path, monkeypatch):
    """`main` on four recordings, with the scripted voice, a recogniser that chatters and a detector."""
    folder = corpus(tmp_path / "clips", "- - - -")
    monkeypatch.setattr(module, "load_voice", lambda options: spoken)
    monkeypatch.setattr(module, "find_detector", lambda tts: DETECTOR)
    monkeypatch.setattr(module, "PocketSphinx", lambda texts: Parrot())
    monkeypatch.setattr(module, "find_ears", Ears)

    def run(**options):
        main(EvaluateOptions(corpus=folder, sampling=LIMITED, **options))

    return run


def test_json_is_one_object_and_nothing_else(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_recogniser", lambda *asked: Parrot())
    program(json=True, domain=str(tmp_path / "clips"))
    text = capsys.readouterr().out
    plain = json.loads(text)
    assert text.count("\n") == 1
    keys = KEYS | {key("wer_domain", kind) for kind in KINDS}
    assert keys <= set(plain) and {f"{name}_ci" for name in keys} <= set(plain)
    assert {"voices", "clips", "takes", "words", "tags", "base", "adapter", "codec", "codec_identity", "recogniser",
            "seed", "sampling", "versions", "corpus", "missing"} <= set(plain)  # fmt: skip
    assert (plain["clips"], plain["seed"], plain["recogniser"]) == (4, 10, "parrot")
    low, high = plain["wer_original_ci"]
    assert low <= plain["wer_original"] <= high


def test_without_the_recogniser_its_figures_are_null_and_a_line_says_so(program, monkeypatch, capsys, caplog):
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    monkeypatch.setattr("orpheus.hearing.recognise.ready", lambda: False)
    with caplog.at_level(logging.WARNING):
        program(json=True, limit=2)
    plain = json.loads(capsys.readouterr().out)
    assert plain["clips"] == 2 and plain["wer_generated"] is plain["wer_generated_ci"] is plain["recogniser"] is None
    assert "not measured: wer_original, wer_reconstruction, wer_generated (no recogniser" in caplog.text


def test_a_whisper_model_that_nobody_would_ask_is_refused():
    with pytest.raises(UserError, match="--whisper-model small is of no use with --recogniser pocketsphinx"):
        EvaluateOptions(recogniser="pocketsphinx", whisper_model="small")


def test_the_table_and_the_report_in_a_folder(program, tmp_path, capsys):
    out = tmp_path / "out"
    program(recogniser="none", out=out)
    table = capsys.readouterr().out
    assert "tokens out of their slot" in table and "0.0198 [" in table
    names = {p.name for p in out.iterdir()}
    page = (out / "page.html").read_text()
    assert page.count("<audio") == 3 + 3 + 3 + 2 and "http" not in page  # the third was spoken without audio
    assert "Sentence number 0." in page and "not measured" not in page and "Not measured: wer_original" in page
    assert {f"clip_{i}_take_0.{suffix}" for i in (0, 1, 3) for suffix in ("wav", "json")} | {
        "report.json", "metrics.png", "page.html"} == names  # fmt: skip
    assert (out / "metrics.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((out / "report.json").read_text())["rows"]
    assert [row["takes"][0]["tokens"] for row in rows] == [36, 22, 1, 42] and rows[0]["original"]["seconds"] == 0.4
    with pytest.raises(UserError, match=r"report\.json exists already"):
        program(recogniser="none", out=out)
    program(recogniser="none", out=out, overwrite=True)


def test_several_voices_are_measured_one_after_another(program, tmp_path, adapter_dir, capsys, caplog):
    out = tmp_path / "out"
    program(recogniser="none", out=out, compare=(str(adapter_dir),))
    table = capsys.readouterr().out
    assert table.split("\n")[0].split() == ["original", "reconstruction", "base", *[name := adapter_dir.name],
                                            name, "-", "base"]  # fmt: skip
    assert {p.name for p in out.iterdir()} == {"base", name, "page.html", "report.json"}
    assert json.loads((out / "report.json").read_text())["differences"][name]["end_of_speech_share"] == 0
    assert (out / name / "clip_0_take_0.wav").is_file() and (out / name / "report.json").is_file()
    with pytest.raises(UserError, match="--compare names base twice"):
        program(compare=("base",))


def test_clips_of_the_training_are_warned_of(program, spoken, tmp_path, monkeypatch, caplog, capsys):
    """The recordings 0 and 1, and the text of 2 with another recording."""
    folder = tmp_path / "clips"
    clips = [SimpleNamespace(key=c.key, text=c.text) for c in held_out(str(folder), spoken)]
    clips[2].key = "f" * 64
    monkeypatch.setattr(spoken, "seen", seen(clips[:3]))
    program(recogniser="none", json=True)
    line = "2 of 4 clips are recordings that base was trained on, and 1 of 4 clips have a text that base was trained on"
    assert line in caplog.text and line in json.loads(capsys.readouterr().out)["warnings"][0]


def test_the_page_explains_every_figure():
    text = DOCS["evaluate"].text
    assert [name for name in sorted(KEYS) if f"`{name}`" not in text] == []


@pytest.mark.parametrize("option", ["samples", "batch_size"])
def test_options_out_of_range(option):
    with pytest.raises(UserError, match=f"{option} is 0"):
        EvaluateOptions(**{option: 0})
