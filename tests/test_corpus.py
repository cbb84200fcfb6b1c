"""Any data set becomes the same examples; what is unfit is left out by name; what was encoded stays encoded."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import httpx
import huggingface_hub.errors as hf
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from orpheus import audio, corpus, sources
from orpheus.codec import SnacCodec
from orpheus.config import HUB_CORPUS, CorpusOptions
from orpheus.corpus import Corpus, prepare
from orpheus.errors import UserError
from orpheus.prompt import IGNORE, Renderer
from orpheus.tokens import FRAME_SLOTS, Codes
from tests.codec_fixtures import speech_like, tiny_snac

TEXTS = ("Hello there, <laughs> how are you?", "It rained all day.", "What, <sighs> again?")
RATE = audio.SAMPLE_RATE_HZ


class CountingCodec:
    """The tiny SNAC; `encoded` counts the clips it was given, and Ctrl-C comes after `interrupt_after` of them."""

    def __init__(self, interrupt_after: float = math.inf, identity: str | None = None) -> None:
        self._codec = SnacCodec.from_model(tiny_snac())
        self.samples_per_frame = self._codec.samples_per_frame
        self.identity = identity or self._codec.identity
        self.interrupt_after = interrupt_after
        self.encoded = 0

    def encode(self, wavs: list[np.ndarray]) -> list[Codes]:
        if self.encoded + len(wavs) > self.interrupt_after:
            raise KeyboardInterrupt
        self.encoded += len(wavs)
        return self._codec.encode(wavs)


@pytest.fixture(scope="module")
def codec() -> SnacCodec:
    return SnacCodec.from_model(tiny_snac())


@pytest.fixture(scope="module")
def renderer(tokenizer, layout) -> Renderer:
    return Renderer(tokenizer, layout)


@pytest.fixture
def run(tmp_path, renderer, codec) -> Callable[..., Corpus]:
    """`prepare` with everything named that a test does not care about."""

    def call(dataset: Any = None, *, codec: Any = codec, max_seq_length: int = 4096, seed: int = 0, progress=False,
             **options: Any) -> Corpus:  # fmt: skip
        if isinstance(dataset, (str, Path)):
            options["dataset"], dataset = str(dataset), None
        options = {"cache_dir": tmp_path / "cache", "validation_share": 0.0} | options
        return prepare(CorpusOptions(**options), codec, renderer, max_seq_length=max_seq_length, seed=seed,
                       dataset=dataset, progress=progress)  # fmt: skip

    return call


def recordings(count: int = 3, seconds: float = 0.4) -> list[np.ndarray]:
    """Clips that 16-bit files hold exactly, each of another length."""
    clips = (speech_like(seconds + 0.05 * i, seed=i) for i in range(count))
    return [np.frombuffer(audio.pcm16(clip), "<i2").astype(np.float32) / 32768 for clip in clips]


def wav(samples: np.ndarray, rate_hz: int = RATE) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def rows(clips: list[np.ndarray] | None = None, texts: Any = TEXTS, **more: Any) -> list[dict[str, Any]]:
    clips = recordings(len(texts)) if clips is None else clips
    return [{"audio": {"bytes": wav(clip), "path": f"{i}.wav"}, "text": text} | {k: v[i] for k, v in more.items()}
            for i, (clip, text) in enumerate(zip(clips, texts, strict=True))]  # fmt: skip


def dataset(*args: Any, **more: Any) -> datasets.Dataset:
    table = datasets.Dataset.from_list(rows(*args, **more))
    return table.cast_column("audio", datasets.Audio())  # as the hub has it; reading a row would decode it


def many(count: int, texts: list[str] | None = None) -> datasets.Dataset:
    """`count` clips of half a second, quickly."""
    rng = np.random.default_rng(1)
    clips = [rng.uniform(-0.3, 0.3, RATE // 2) for _ in range(count)]
    return dataset(clips, texts or [f"Sentence number {i}." for i in range(count)])


# ---- layouts ----


def write_metadata(folder: Path, suffix: str, columns: tuple[str, str] = ("file_name", "text")) -> Path:
    (folder / "clips").mkdir(parents=True)
    lines = []
    for i, row in enumerate(rows()):
        (folder / "clips" / f"{i}.wav").write_bytes(row["audio"]["bytes"])
        lines.append(dict(zip(columns, (f"clips/{i}.wav", row["text"]), strict=True)))
    with open(folder / f"metadata{suffix}", "w", encoding="utf-8-sig", newline="") as file:
        if suffix == ".csv":
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(lines)
        else:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    return folder


def write_ljspeech(folder: Path) -> Path:
    (folder / "wavs").mkdir(parents=True)
    for i, row in enumerate(rows()):
        (folder / "wavs" / f"LJ-{i}.wav").write_bytes(row["audio"]["bytes"])
    texts = [f"LJ-{i}|as it was written|{text}" for i, text in enumerate(TEXTS)]
    texts[1] = f"LJ-1|{TEXTS[1]}|"  # without the normalised text
    (folder / "metadata.csv").write_text("\n".join(texts) + "\n")
    return folder


def write_parquet(file: Path, part: slice = slice(None)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows()[part]), file)
    return file


def write_shards(folder: Path) -> Path:
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", slice(2))
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", slice(2, None))
    write_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


def save(folder: Path, table: datasets.Dataset | datasets.DatasetDict) -> Path:
    table.save_to_disk(str(folder))
    return folder


def decoded() -> datasets.Dataset:
    """Arrays instead of files, as a notebook has them."""
    cells = [{"array": clip.tolist(), "sampling_rate": RATE, "path": None} for clip in recordings()]
    return datasets.Dataset.from_dict({"audio": cells, "text": list(TEXTS)})


LAYOUTS: dict[str, Callable[[Path], Any]] = {
    "metadata.csv": lambda folder: write_metadata(folder, ".csv"),
    "metadata.jsonl": lambda folder: write_metadata(folder, ".jsonl"),
    "the file itself": lambda folder: write_metadata(folder, ".jsonl") / "metadata.jsonl",
    "audio column": lambda folder: write_metadata(folder, ".csv", ("audio", "text")),
    "LJSpeech": write_ljspeech,
    "Parquet file": lambda folder: write_parquet(folder / "clips.parquet"),
    "Parquet shards": write_shards,
    "saved Dataset": lambda folder: save(folder, dataset()),
    "saved DatasetDict": lambda folder: save(folder, datasets.DatasetDict(train=dataset(), test=many(1))),
    "Dataset": lambda folder: dataset(),
    "DatasetDict": lambda folder: datasets.DatasetDict(train=dataset(), test=many(1)),
    "formatted Dataset": lambda folder: dataset().with_format("numpy"),
    "decoded arrays": lambda folder: decoded(),
}


@pytest.mark.parametrize("layout_name", LAYOUTS)
def test_every_layout_gives_the_same_examples(layout_name, tmp_path, run, renderer, codec, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the datasets library decoded a recording")

    monkeypatch.setattr(datasets.Audio, "decode_example", fail)
    result = run(LAYOUTS[layout_name](tmp_path / "data"))

    examples = [renderer.example(text, codes) for text, codes in zip(TEXTS, codec.encode(recordings()), strict=True)]
    assert result.train["input_ids"] == [example.input_ids for example in examples]
    assert result.train["labels"] == [example.labels for example in examples]
    assert result.train["length"] == [len(example.input_ids) for example in examples]
    assert not result.rejections and len(result.validation) == 0


def test_hub_data_set(run, monkeypatch):
    asked = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    result = run("someone/voices", split="clean")
    assert asked == [("someone/voices", "clean")]
    assert result.name == "someone/voices" and len(result.train) == 3


def hub_error(kind: type[hf.HfHubHTTPError], text: str, status: int) -> Exception:
    response = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))
    return kind(text, response=response)


def as_datasets_raises(cause: Exception) -> Exception:
    """`datasets` wraps what the hub says and hides the cause by `from None`."""
    try:
        try:
            raise hf.LocalEntryNotFoundError("Please check your connection and try again") from cause
        except Exception as error:
            raise FileNotFoundError(f"Couldn't find any data file. {type(error).__name__}: {error}") from None
    except FileNotFoundError as error:
        return error


@pytest.mark.parametrize(("error", "reason"), [
    (ConnectionError("Couldn't reach 'x' on the Hub (OfflineModeIsEnabled)"), "can't be reached"),
    (as_datasets_raises(httpx.ConnectError("[Errno -2] Name or service not known")), "can't be reached"),
    (as_datasets_raises(hub_error(hf.DisabledRepoError, "403 Client Error.", 403)), "disabled on the hub"),
    (hub_error(hf.RepositoryNotFoundError, "404 Client Error.", 404), "no such repository"),
    (datasets.exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub."), "gated"),
    (datasets.exceptions.DatasetNotFoundError("Dataset 'x' doesn't exist on the Hub or cannot be accessed."),
     "doesn't exist on the Hub"),
    (ValueError('Unknown split "train". Should be one of [\'test\'].'), "Unknown split"),
    (datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset"), "generating"),
])  # fmt: skip
def test_hub_failure_says_which_why_and_what_to_do(error, reason, run, monkeypatch):
    def load_dataset(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError) as caught:
        run(HUB_CORPUS)
    message = str(caught.value)
    remedies = ("local folder", "Etherll/kaira", "--model.preset tiny", "data/corpus")
    for part in (HUB_CORPUS, reason, "April 2026", *remedies):
        assert part in message
    assert "\n" not in message and len(message) < 500


def test_another_id_is_not_said_to_be_disabled(run, monkeypatch):
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach it")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="'me/voices' is no folder here") as caught:
        run("me/voices")
    assert "April 2026" not in str(caught.value)


def test_unreachable_hub_for_real(run):
    with pytest.raises(UserError, match="can't be reached"):
        run(HUB_CORPUS)  # conftest.py has put the hub offline


def broken(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        folder.mkdir()
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return folder

    return write


@pytest.mark.parametrize(("make", "message"), [
    (lambda folder: folder / "nowhere", "there is no file or folder"),
    (broken("notes.txt", "hi"), r"is no data set \(it holds notes.txt\): expected a saved data set, metadata.csv"),
    (broken("metadata.csv", "file_name,text\n"), "holds no clips"),
    (broken("metadata.csv", "file_name,text\na.wav,Hello, you\n"), "line 2 has more fields than the header"),
    (broken("metadata.csv", "file_name,caption\na.wav,Hi\n"), "no column 'text': it has file_name, caption; .*text-"),
    (broken("metadata.csv", "name,text\na.wav,Hi\n"), "no column 'file_name': it has name, text; .*audio-column"),
    (broken("metadata.csv", "a|Hi\n"), "there is no folder .*wavs"),
    (broken("metadata.csv", "file_name,text\na.wav,caf\xe9\n".encode("latin-1")), "not UTF-8"),
    (broken("metadata.jsonl", '{"file_name": "a.wav"\n'), "line 1 is not valid JSON"),
    (broken("metadata.jsonl", "[1]\n"), "line 1 is list, expected an object"),
    (broken("x.parquet", b"PAR1 no"), "is not a Parquet file"),
    (broken("state.json", "{}"), "damaged saved data set"),
    (lambda folder: write_parquet(folder / "x.csv.parquet").rename(folder / "x.xls"), "neither .csv, .jsonl nor"),
    (lambda folder: datasets.DatasetDict(test=dataset()), "no split 'train': it has test"),
    (lambda folder: write_parquet(folder / "dev-00000-of-00001.parquet").parent, "no split 'train': it has dev"),
    (lambda folder: dataset().rename_column("audio", "speech"), "no column 'audio': it has .*speech.*audio-column"),
    (lambda folder: dataset().to_iterable_dataset(), "is IterableDataset, expected datasets.Dataset"),
    (lambda folder: dataset().select([]), "holds no clips"),
])  # fmt: skip
def test_unusable_data_set(make, message, tmp_path, run):
    with pytest.raises(UserError, match=message):
        run(make(tmp_path / "data"))


def test_no_data_set_named(run):
    with pytest.raises(UserError, match="no data set is named"):
        run()


def test_two_metadata_files_are_not_guessed_between(tmp_path, run):
    folder = write_metadata(tmp_path / "data", ".csv")
    (folder / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"both metadata.csv and metadata.jsonl"):
        run(folder)


def test_columns_may_have_other_names(run):
    table = dataset().rename_columns({"audio": "speech", "text": "transcription"})
    table = table.add_column("speaker", ["mia", "leo", "mia"])
    result = run(table, audio_column="speech", text_column="transcription", voice_column="speaker")
    assert result.voices == ("leo", "mia")
    with pytest.raises(UserError, match=r"no column 'who': it has speech, transcription, speaker; .*voice-column"):
        run(table, audio_column="speech", text_column="transcription", voice_column="who")


def test_limit_takes_the_first_clips(tmp_path, run):
    assert [clip.text for clip in run(dataset(), limit=2).clips] == list(TEXTS[:2])
    assert len(run(write_shards(tmp_path / "data"), limit=99).clips) == 3


# ---- voices ----


def test_voice_stands_before_the_text(run, renderer, codec, tokenizer):
    result = run(dataset(source=["tara", None, " "]))
    codes = codec.encode(recordings())
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
    clips = recordings(6, seconds=0.3)
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

GOOD = wav(recordings(1)[0])
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
    ({"audio": wav(recordings(1)[0][:2400])}, "too short", "0.10 s"),
    ({"audio": wav(speech_like(30.0))}, "too long", "30.0 s make"),
    ({"text": None}, "no text", "missing"),
    ({"text": " \n"}, "no text", "missing"),
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
    assert [r.name for r in result.rejections] == ["clips/0.wav", "clips/1.wav", "clips/2.wav", "row 4"]
    assert len(result.train) == 1


def test_integer_array_of_unknown_scale(run):
    cell = {"array": [1000, -1000] * 9000, "sampling_rate": RATE}
    with pytest.raises(UserError, match=r"\(1 unreadable\)"):
        run(datasets.Dataset.from_list([{"audio": cell, "text": "Hi."}]))


def bad_and_good(bad: int, good: int) -> datasets.Dataset:
    return many(bad + good, [""] * bad + [f"Sentence {i}." for i in range(good)])


def test_a_fifth_may_be_rejected_and_no_more(run, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "WINDOW_S", 0.1)  # each clip is encoded as soon as it is read
    assert len(run(bad_and_good(2, 8)).rejections) == 2
    codec = CountingCodec()
    with pytest.raises(UserError) as caught:
        run(bad_and_good(3, 7), codec=codec, cache_dir=tmp_path / "other")
    message = str(caught.value)
    for part in ("3 of the 10 clips", "30.0%", "3 no text", "20.0% are allowed", "--corpus.max-rejected 0.3"):
        assert part in message
    report = (tmp_path / "other" / "rejected.txt").read_text()
    assert report.count(": no text: ") == 3 and "7 of 10" in report
    assert codec.encoded == 0  # once it is certain that the run fails, nothing more is encoded
    assert len(run(bad_and_good(3, 7), max_rejected=0.3).clips) == 7


def test_the_suggested_share_is_enough(run):
    """0.58 * 50 is a little less than 29 in floating point."""
    table = bad_and_good(29, 21)
    with pytest.raises(UserError, match=r"--corpus.max-rejected 0.58$"):
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
    clip = recordings(1)[0]
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
    monkeypatch.setattr(corpus, "BATCH_S", 1.0)  # two clips at a time
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


def test_audio_is_held_only_for_a_window(run, monkeypatch):
    """However large the data set is, a window of audio is encoded before more is read; the result is the same."""
    held: list[float] = []

    class Watched(CountingCodec):
        def encode(self, wavs: list[np.ndarray]) -> list[Codes]:
            held.append(sum(map(len, wavs)) / RATE)
            return super().encode(wavs)

    reference = run(many(12)).train.to_list()
    encoded_before = []
    samples = sources.Record.samples

    def watched_samples(record: sources.Record) -> np.ndarray:
        encoded_before.append(sum(held))
        return samples(record)

    monkeypatch.setattr(sources.Record, "samples", watched_samples)
    monkeypatch.setattr(corpus, "WINDOW_S", 2.0)
    assert run(many(12), codec=Watched(identity="fresh")).train.to_list() == reference
    assert held == [2.0, 2.0, 2.0]
    assert encoded_before == [0.0] * 4 + [2.0] * 4 + [4.0] * 4  # seconds, when each clip was read


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.integers(0, 99).map(str), st.integers(1, 100), max_size=30), st.integers(1, 200))
def test_batches_hold_every_clip_once_within_the_bound(lengths, most):
    batches = list(corpus._batches(lengths, most))
    assert sorted(key for batch in batches for key in batch) == sorted(lengths)
    assert all(len(batch) == 1 or sum(lengths[key] for key in batch) <= most for batch in batches)


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


# ---- the report ----


def test_summary_and_report(run, tmp_path):
    clips = [*recordings(3), recordings(1)[0][:100], 0.02 * recordings(1)[0], np.clip(9 * recordings(1)[0], -1, 1)]
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


def test_data_hash_ignores_the_order_and_sees_every_change(run):
    clips = recordings()
    reference = run(dataset(clips)).data_hash
    assert run(dataset(clips[::-1], TEXTS[::-1])).data_hash == reference
    changed = [np.concatenate([clips[0], [0.1]]), *clips[1:]]
    hashes = [run(dataset(clips, TEXTS[::-1])).data_hash, run(dataset(clips, source=["mia"] * 3)).data_hash,
              run(dataset(changed)).data_hash, run(dataset(clips[:2], TEXTS[:2])).data_hash]  # fmt: skip
    assert len({reference, *hashes}) == 5


def test_progress_off_a_terminal_is_plain_lines(run, capsys):
    run(dataset(), progress=True)
    lines = capsys.readouterr().err.split("\n")
    assert any("3 of 3 clips" in line and "clip/s" in line and "s of audio/s" in line for line in lines)
    assert not any("\x1b" in line or "%|" in line for line in lines)
    run(dataset(), progress=False)
    assert capsys.readouterr().err == ""


def test_records_are_read_lazily(tmp_path):
    """Opening a data set reads no recording."""
    folder = write_metadata(tmp_path / "data", ".csv")
    for file in (folder / "clips").iterdir():
        file.unlink()
    source = sources.open_source(CorpusOptions(dataset=str(folder)))
    records: Iterator[sources.Record] = source.records()
    assert source.count == 3 and next(records).text == TEXTS[0]
