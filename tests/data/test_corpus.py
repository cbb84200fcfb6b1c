"""Any data set becomes the same examples; what is unfit is left out by name; what was encoded stays encoded."""

from __future__ import annotations

import io
import math
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus.config import CorpusOptions
from orpheus.data import corpus, encoding, sources
from orpheus.errors import UserError
from orpheus.format.prompt import IGNORE, Renderer
from orpheus.format.tokens import FRAME_SLOTS, Codes
from tests.support.codec_fixtures import speech_like
from tests.support.corpus_fixtures import RATE, TEXTS, CountingCodec, dataset, many, recorded, wav, write_metadata

# ---- voices ----


def test_voice_stands_before_the_text(run, renderer, codec, tokenizer):
    result = run(dataset(source=["tara", None, " "]))
    codes = codec.encode(recorded())
    assert result.train["input_ids"][0] == renderer.example(TEXTS[0], codes[0], "tara").input_ids
    assert result.train["input_ids"][1:] == [renderer.example(TEXTS[i], codes[i]).input_ids for i in (1, 2)]
    assert f"tara: {TEXTS[0]}" in tokenizer.decode(result.train["input_ids"][0][:100])
    assert result.voices == ("tara",)
    assert any("without a voice" in warning and "2 of 3" in warning for warning in result.warnings)


def test_voice_column_can_be_left_out(run):
    assert run(dataset(source=["https://example.org"] * 3), voice_column="").voices == ()


def test_voice_numbers_become_names(run):
    table = dataset(source=[1, 0, 1]).cast_column("source", datasets.ClassLabel(names=["leo", "mia"]))
    assert [clip.voice for clip in run(table).clips] == ["mia", "leo", "mia"]


# ---- each clip at its own rate, whole ----


def test_each_clip_is_resampled_from_its_own_rate(run, renderer, codec):
    """Three clips of one second: with the first one's rate for all, the others would last 2.8 s and 1.5 s."""
    seconds = np.arange(44100) / 44100
    tone = 0.3 * np.sin(2 * np.pi * 330 * seconds)
    stereo = np.stack([tone, 0.5 * tone], axis=1)
    files = [wav(tone[:16000], 16000), wav(stereo, 44100), wav(tone[:24000], 24000)]
    table = datasets.Dataset.from_list([{"audio": {"bytes": file, "path": None}, "text": "A tone."} for file in files])
    result = run(table)
    assert [clip.seconds for clip in result.clips] == pytest.approx([1.0, 1.0, 1.0], abs=1e-3)
    frames = [(clip.tokens - len(renderer.prompt("A tone.")) - 2) / FRAME_SLOTS for clip in result.clips]
    assert frames == [math.ceil(RATE / codec.samples_per_frame)] * 3
    samples = [record.samples() for record in sources.open_source(CorpusOptions(), table).records()]
    pitch_hz = [np.argmax(np.abs(np.fft.rfft(clip, RATE))) for clip in samples]
    assert pitch_hz == pytest.approx([330 * 16000 / 44100, 330, 330 * 24000 / 44100], abs=2)


@pytest.mark.parametrize("shape", ["channels first", "channels last"])
def test_decoded_stereo_array(shape, run):
    tone = 0.3 * np.sin(np.arange(16000) / 9)
    array = np.stack([tone, tone], axis=0 if shape == "channels first" else 1)
    cell = {"array": array.tolist(), "sampling_rate": 16000}
    (clip,) = run(datasets.Dataset.from_list([{"audio": cell, "text": "Hi."}])).clips
    assert clip.seconds == pytest.approx(1.0, abs=1e-3)


def test_too_long_is_left_out_and_never_cut(run, renderer, codec, layout):
    clips = recorded(6, seconds=0.3)
    texts = [f"Clip number {i}." for i in range(6)]
    lengths = [len(renderer.example(t, c).input_ids) for t, c in zip(texts, codec.encode(clips), strict=True)]
    limit = sorted(lengths)[3]  # exactly this long is allowed
    result = run(dataset(clips, texts), max_seq_length=limit, max_rejected=1.0)

    assert [r.reason for r in result.rejections] == ["too long"] * sum(n > limit for n in lengths)
    assert f"{limit} hold " in result.rejections[0].detail
    assert result.train["length"] == [n for n in lengths if n <= limit] == [clip.tokens for clip in result.clips]
    for ids, labels in zip(result.train["input_ids"], result.train["labels"], strict=True):
        assert ids[-2:] == labels[-2:] == [layout.end_of_speech, layout.end_of_ai]
        assert labels[0] == IGNORE


def test_too_long_is_known_before_encoding(run):
    codec = CountingCodec()
    with pytest.raises(UserError, match=r"none of the 3 clips .*\(3 too long\)"):
        run(dataset(), codec=codec, max_seq_length=30)
    assert codec.encoded == 0


def test_frames_that_repeat_are_kept(run, codec, layout):
    """A steady tone gives the same codes again and again; dropping them would drop its duration."""
    tone = 0.3 * np.sin(2 * np.pi * 750 * np.arange(2 * RATE) / RATE).astype(np.float32)
    result = run(dataset([tone], ["Mmm."]))
    ids = result.train["input_ids"][0]
    speech = ids[ids.index(layout.start_of_speech) + 1 : -2]
    codes, _ = layout.unflatten(speech)
    assert codes.frames == math.ceil(len(tone) / codec.samples_per_frame)
    assert len(set(codes.coarse.tolist())) < codes.frames


# ---- what is left out, and why ----

GOOD = wav(recorded(1)[0])
NAN = np.full(RATE, np.nan, np.float32)


def float_wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


@pytest.mark.parametrize(("row", "reason", "detail"), [
    ({"audio": b"RIFF but no more"}, "unreadable", "not audio"),
    ({"audio": None}, "unreadable", "no recording"),
    ({"audio": "nowhere.wav"}, "unreadable", "nowhere.wav"),
    ({"audio": b""}, "empty", "0 bytes"),
    ({"audio": wav(np.zeros(0))}, "empty", "no samples"),
    ({"audio": float_wav(NAN)}, "not finite", "NaN"),
    ({"audio": wav(np.zeros(RATE))}, "silent", "silent"),
    ({"audio": wav(recorded(1)[0][:2400])}, "too short", "0.10 s"),
    ({"audio": wav(speech_like(30.0))}, "too long", "that fit: split it"),
    ({"text": None}, "no text", "missing"),
    ({"text": " \n"}, "no text", "missing"),
    ({"text": "nan"}, "no text", "'nan', which programs write"),
    ({"text": "NULL"}, "no text", "programs write"),
    ({"text": "#N/A "}, "no text", "programs write"),
    ({"text": "Well <unk>"}, "bad tag", "own mark"),
    ({"text": "Well &lt;3 you"}, "bad tag", "not closed"),
    ({"text": "\u200b\ufeff"}, "bad text", "empty"),
    ({"text": "Well <laugh"}, "bad tag", "not closed"),
    ({"text": "Well <3 you"}, "bad tag", "not closed"),
    ({"text": "Well <> you"}, "bad tag", "not a tag"),
    ({"text": "Well <custom_token_2>"}, "bad tag", "control token"),
    ({"text": "?!"}, "bad text", "no letter"),
    ({"text": "caf\ufffd <laughs>"}, "bad text", "encoding"),
    ({"source": "https://example.org"}, "bad voice", "not a voice name"),
])  # fmt: skip
def test_reasons(row, reason, detail, tmp_path, run):
    both = [{"audio": GOOD, "text": "Hello.", "source": "mia"} | row, {"audio": GOOD, "text": "Fine.", "source": "mia"}]
    cells = [row["audio"] for row in both]
    files = [{"path": c, "bytes": None} if isinstance(c, str) else {"path": None, "bytes": c} for c in cells]
    table = datasets.Dataset.from_list([row | {"audio": file} for row, file in zip(both, files, strict=True)])
    result = run(table, max_rejected=0.5, max_seq_length=2048)
    (rejection,) = result.rejections
    assert rejection.reason == reason and detail in rejection.detail and rejection.name.startswith("row 1")
    assert [clip.text for clip in result.clips] == ["Fine."]


def test_texts_are_normalised_and_the_report_says_so(run):
    texts = ["hel\u200blo it\u2019s <br> &amp; you", "Fine.", "Tom [laughs] *sighs*"]
    rows = [{"audio": {"path": None, "bytes": GOOD}, "text": text, "source": "mi\u200ba"} for text in texts]
    result = run(datasets.Dataset.from_list(rows), max_seq_length=2048)
    assert [clip.text for clip in result.clips] == ["hello it's & you", *texts[1:]] and result.voices == ("mia",)
    said = result.summary()
    assert said.count("normalised: 1 of 3 (") == 1 and "1 invisible characters" in said and "1 quotes" in said
    assert "did you mean <laughs>?" in said and "did you mean <sighs>?" in said


def test_text_that_the_renderer_refuses(run, monkeypatch):
    """What only the tokenizer can tell: that a text turns into one of its control tokens."""

    def text_ids(self: Renderer, text: str, voice: str | None = None) -> list[int]:
        if "control" in text:
            raise UserError("the text contains a control token")
        return [self.layout.bos]

    monkeypatch.setattr(Renderer, "text_ids", text_ids)
    result = run(dataset(texts=["control", "Hi.", "Ho."]), max_rejected=0.5)
    assert [(r.reason, r.detail) for r in result.rejections] == [("bad text", "the text contains a control token")]


def test_text_that_is_a_number_or_nan(tmp_path, run):
    folder = write_metadata(tmp_path / "data", ".jsonl")
    (folder / "metadata.jsonl").write_text('{"file_name": "clips/0.wav", "text": 5}\n'
                                           '{"file_name": "clips/1.wav", "text": NaN}\n'
                                           '{"file_name": "clips/2.wav"}\n{"text": "Hi."}\n'
                                           '{"file_name": "../data/clips/2.wav", "text": "Hi."}\n')  # fmt: skip
    result = run(folder, max_rejected=1.0)
    assert [r.reason for r in result.rejections] == ["bad text", "no text", "no text", "unreadable"]
    assert [r.name for r in result.rejections] == ["clips/0.wav", "clips/1.wav", "clips/2.wav", "line 4"]
    assert len(result.train) == 1


def test_integer_array_of_unknown_scale(run):
    cell = {"array": [1000, -1000] * 9000, "sampling_rate": RATE}
    with pytest.raises(UserError, match=r"\(1 unreadable\)"):
        run(datasets.Dataset.from_list([{"audio": cell, "text": "Hi."}]))


def bad_and_good(bad: int, good: int) -> datasets.Dataset:
    return many(bad + good, [""] * bad + [f"Sentence {i}." for i in range(good)])


def test_a_fifth_may_be_rejected_and_no_more(run, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "WINDOW_S", 0.1)  # each clip is encoded as soon as it is read
    assert len(run(bad_and_good(2, 8)).rejections) == 2
    codec = CountingCodec()
    with pytest.raises(UserError) as caught:
        run(bad_and_good(3, 7), codec=codec, cache_dir=tmp_path / "other")
    message = str(caught.value)
    for part in ("3 of the 10 clips", "30.0%", "3 no text", "20.0% are allowed", "--max-rejected 0.3"):
        assert part in message
    report = (tmp_path / "other" / "rejected.txt").read_text()
    assert report.count(": no text: ") == 3 and "7 of 10" in report
    assert codec.encoded == 0  # once it is certain that the run fails, nothing more is encoded
    assert len(run(bad_and_good(3, 7), max_rejected=0.3).clips) == 7


def test_the_suggested_share_is_enough(run):
    """0.58 * 50 is a little less than 29 in floating point."""
    table = bad_and_good(29, 21)
    with pytest.raises(UserError, match=r"--max-rejected 0.58$"):
        run(table)
    assert len(run(table, max_rejected=0.58).clips) == 21


def test_nothing_fit_always_stops(run):
    with pytest.raises(UserError, match=r"none of the 2 clips .*\(2 no text\)"):
        run(bad_and_good(2, 0), max_rejected=1.0)


@pytest.mark.parametrize(("option", "value"), [("max_rejected", 1.1), ("validation_share", 1.0), ("min_seconds", -1.0),
                                              ("limit", -1)])  # fmt: skip
def test_options_out_of_range(option, value, run):
    with pytest.raises(UserError, match=f"{option} is {value}, expected"):
        run(dataset(), **{option: value})


# ---- the cache ----


def test_second_run_encodes_nothing_and_gives_the_same(run):
    first, again = CountingCodec(), CountingCodec()
    a, b = run(dataset(), codec=first), run(dataset(), codec=again)
    assert (first.encoded, again.encoded) == (3, 0)
    assert a.train.to_list() == b.train.to_list() and a.clips == b.clips and a.data_hash == b.data_hash


def test_same_recording_is_encoded_once(run):
    clip = recorded(1)[0]
    codec = CountingCodec()
    result = run(dataset([clip, clip], ["Yes.", "No."]), codec=codec)
    assert codec.encoded == 1 and len(result.train) == 2
    assert any("same recording" in warning for warning in result.warnings)


def test_another_codec_has_its_own_cache(run):
    run(dataset())
    other = CountingCodec(identity="snac-other")
    run(dataset(), codec=other)
    assert other.encoded == 3


def test_interrupted_encoding_goes_on_where_it_stopped(run, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH_S", 1.0)  # two clips at a time
    interrupted, resumed = CountingCodec(interrupt_after=5), CountingCodec()
    with pytest.raises(KeyboardInterrupt):
        run(many(10), codec=interrupted)
    assert interrupted.encoded == 4
    result = run(many(10), codec=resumed)
    assert resumed.encoded == 6
    assert [clip.text for clip in result.clips] == [f"Sentence number {i}." for i in range(10)]
    assert result.train.to_list() == run(many(10), codec=CountingCodec()).train.to_list()


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "out of range", "other length"])
def test_damaged_cache_entry_is_encoded_anew(damage, run, tmp_path):
    reference = run(dataset()).train.to_list()
    entry = sorted((tmp_path / "cache").rglob("*.npz"))[0]
    content = entry.read_bytes()
    with np.load(entry) as layers:
        codes = Codes(*(layers[name] for name in Codes._fields))
    if damage == "out of range":
        np.savez(entry, **codes._replace(fine=codes.fine + np.int16(4096))._asdict())
    elif damage == "other length":
        np.savez(entry, **codes.slice(0, codes.frames - 1)._asdict())
    else:
        half = len(content) // 2
        entry.write_bytes({"cut": content[:half], "foreign": b"hello", "empty": b"",
                           "flipped": content.replace(b"coarse", b"cOarse")}[damage])  # fmt: skip
    codec = CountingCodec()
    assert run(dataset(), codec=codec).train.to_list() == reference
    assert codec.encoded == 1
    assert entry.read_bytes()[:2] == b"PK" and not list(entry.parent.glob("*.partial*"))


def test_cache_that_cant_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    codec = CountingCodec()
    with pytest.raises(UserError, match=r"can't write .*file"):
        run(dataset(), codec=codec, cache_dir=tmp_path / "file")
    assert codec.encoded == 0


def test_disk_full_while_encoding_is_a_clear_error(run, monkeypatch):
    def savez(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(UserError, match=r"can't write .*\.npz.*No space left"):
        run(dataset())


# ---- the split ----


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40), st.floats(0, 0.99), st.integers(0, 5))
def test_split_properties(texts, share, seed):
    held_out = corpus._held_out(texts, share, seed)
    train = {texts[i] for i in range(len(texts)) if i not in held_out}
    validation = {texts[i] for i in held_out}
    assert train and not train & validation  # never empty, and no text on both sides
    if share > 0 and len(texts) >= 10 and len(set(texts)) > 1:
        assert validation
    if share == 0:
        assert not validation
    order = np.random.default_rng(seed).permutation(len(texts))
    shuffled = corpus._held_out([texts[i] for i in order], share, seed)
    assert {texts[order[i]] for i in shuffled} == validation  # whatever the order of the clips


def test_split_of_a_corpus(run):
    table = many(20)
    first = run(table, validation_share=0.1)
    assert (len(first.train), len(first.validation)) == (18, 2)
    assert run(table, validation_share=0.1).validation.to_list() == first.validation.to_list()  # now from the cache
    others = [run(table, validation_share=0.1, seed=seed).validation.to_list() for seed in range(1, 5)]
    assert any(other != first.validation.to_list() for other in others)
    assert first.train["length"] + first.validation["length"] == [len(ids) for part in (first.train, first.validation)
                                                                 for ids in part["input_ids"]]  # fmt: skip


def test_small_corpora_are_not_split_and_ten_clips_are(run):
    assert len(run(many(9), validation_share=0.05).validation) == 0
    assert len(run(many(10), validation_share=0.05).validation) == 1
    assert len(run(many(10), validation_share=0.0).validation) == 0


def test_summary_and_report(run, tmp_path):
    clips = [*recorded(3), recorded(1)[0][:100], 0.02 * recorded(1)[0], np.clip(9 * recorded(1)[0], -1, 1)]
    texts = [TEXTS[0], "Oh, <laughing> no.", TEXTS[0], "Short.", "Quiet.", "Loud."]
    result = run(dataset(clips, texts), max_rejected=0.5)
    summary = result.summary()
    for part in ("5 of 6", "2 laughs, 1 laughing", f"2 '{TEXTS[0]}'", "1: 1 too short", "median", "5 to train, 0 to"):
        assert part in summary
    warnings = "\n".join(result.warnings)
    assert "did you mean <laughs>?" in warnings
    assert "clipped: 1 of 5 clips (row 6 (5.wav))" in warnings
    assert "12 dB from the median loudness: 2 of 5 clips (row 5 (4.wav), row 6 (5.wav))" in warnings
    report = result.save_report(tmp_path / "out" / "report.txt").read_text()
    assert summary in report and "row 4 (3.wav): too short: " in report and "row 6 (5.wav): clipped: " in report
    assert result.tags == {"laughs": 2, "laughing": 1}
    assert result.seconds == pytest.approx(sum(len(c) for i, c in enumerate(clips) if i != 3) / RATE)


def test_odd_voices_are_told(run):
    clips = recorded(5)
    texts = ["anna: Hello.", "It rained.", "BEN : Hi there.", "Carlo, come.", "anna and ben."]
    told = "\n".join(run(dataset(clips, texts, source=["anna", "Anna", "ben", "Carlo", "anna"])).warnings)
    assert "the voices Anna, anna differ only in case" in told and "Carlo" not in told
    assert "begins with its own voice" in told and "2 of 5 clips (row 1 (0.wav), row 3 (2.wav))" in told
    told = "\n".join(run(dataset(clips, texts, source=list("abcde"))).warnings)
    assert "another in each of 5 clips" in told and "--voice-column ''" in told
    assert not [w for w in run(dataset(clips, source=list("ababc"), texts=texts)).warnings if "voice" in w]


def test_data_hash_ignores_the_order_and_sees_every_change(run):
    clips = recorded()
    reference = run(dataset(clips)).data_hash
    assert run(dataset(clips[::-1], TEXTS[::-1])).data_hash == reference
    changed = [np.concatenate([clips[0], [0.1]]), *clips[1:]]
    hashes = [run(dataset(clips, TEXTS[::-1])).data_hash, run(dataset(clips, source=["mia"] * 3)).data_hash,
              run(dataset(changed)).data_hash, run(dataset(clips[:2], TEXTS[:2])).data_hash]  # fmt: skip
    assert len({reference, *hashes}) == 5
