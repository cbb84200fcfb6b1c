"""Any data set, in whatever layout, becomes the same examples; what can't be had is said in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import httpx
import huggingface_hub.errors as hf
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orpheus.config import HUB_CORPUS, CorpusOptions
from orpheus.data import sources
from orpheus.errors import UserError
from tests.support.corpus_fixtures import RATE, TEXTS, dataset, many, recorded, rows, write_metadata

# ---- layouts ----


def write_ljspeech(folder: Path) -> Path:
    (folder / "wavs").mkdir(parents=True)
    for i, row in enumerate(rows()):
        (folder / "wavs" / f"LJ-{i}.wav").write_bytes(row["audio"]["bytes"])
    texts = [f"LJ-{i}|{text.upper()}|{text}" for i, text in enumerate(TEXTS)]
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
    cells = [{"array": clip.tolist(), "sampling_rate": RATE, "path": None} for clip in recorded()]
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

    examples = [renderer.example(text, codes) for text, codes in zip(TEXTS, codec.encode(recorded()), strict=True)]
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
        except hf.LocalEntryNotFoundError as error:
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
    remedies = ("local folder", "Etherll/kaira", "--preset tiny", "data/corpus")
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
    (broken("metadata.csv", "a|Hi\n"), "none of its rows names a recording: there is neither a nor wavs/a.wav"),
    (broken("metadata.csv", "file_name,text\na.wav,caf\xe9\n".encode("latin-1")), "not UTF-8"),
    (broken("metadata.jsonl", '{"file_name": "a.wav"\n'), "line 1 is not valid JSON"),
    (broken("metadata.jsonl", "[1]\n"), "line 1 is list, expected an object"),
    (broken("x.parquet", b"PAR1 no"), "is not a Parquet file"),
    (broken("state.json", "{}"), "damaged saved data set"),
    (lambda folder: write_parquet(folder / "x.csv.parquet").rename(folder / "x.xls"), "neither .csv, .tsv, .jsonl"),
    (lambda folder: datasets.DatasetDict(test=dataset()), "no split 'train': it has test"),
    (lambda folder: write_parquet(folder / "dev-00000-of-00001.parquet").parent, "no split 'train': it has dev"),
    (lambda folder: dataset().rename_column("audio", "speech"), "no column 'audio': it has .*speech.*audio-column"),
    (lambda folder: dataset().to_iterable_dataset(), "is IterableDataset, expected datasets.Dataset"),
    (lambda folder: dataset().select([]), "holds no clips"),
])  # fmt: skip
def test_unusable_data_set(make, message, tmp_path, run):
    with pytest.raises(UserError, match=message):
        run(make(tmp_path / "data"))


@pytest.mark.parametrize("kind", ["List", "LargeList2", "Json"])
def test_what_a_newer_version_saved_is_said_with_the_way_out(kind, tmp_path, run, monkeypatch):
    """Version 4 writes List where 3 has Sequence, and 3 knows no such type."""
    folder = save(
        tmp_path / "data",
        dataset(words=[[1], [2], [3]]).cast_column("words", datasets.Sequence(datasets.Value("int64"))),
    )
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"Sequence"', f'"{kind}"'))
    says = rf"newer version of datasets .*type {kind}.* here is {datasets.__version__}: .*to_parquet"
    with pytest.raises(UserError, match=says):
        run(folder)

    def load_dataset(*_: Any, **__: Any) -> None:
        raise ValueError(f"Feature type '{kind}' not found. Available feature types: ['Value']")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=says):
        run("me/voices")


def test_speakers_and_usual_names_in_every_kind_of_data_set(tmp_path, run):
    table = dataset(speaker=["mia", "leo", "mia"]).rename_column("text", "sentence")
    write_parquet(tmp_path / "x.parquet")
    pq.write_table(table.data.table.combine_chunks(), tmp_path / "x.parquet")
    for source in (table, save(tmp_path / "saved", table), tmp_path / "x.parquet"):
        result = run(source)
        assert result.voices == ("leo", "mia") and [clip.text for clip in result.clips] == list(TEXTS)
        assert "texts from 'sentence', voices from 'speaker' (2 people)" in result.summary()
    assert run(table, voice_column="").voices == ()


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


def test_records_are_read_lazily(tmp_path):
    """Opening a data set reads no recording."""
    folder = write_metadata(tmp_path / "data", ".csv")
    for file in (folder / "clips").iterdir():
        file.unlink()
    source = sources.open_source(CorpusOptions(dataset=str(folder)))
    records: Iterator[sources.Record] = source.records()
    assert source.count == 3 and next(records).text == TEXTS[0]


def test_progress_off_a_terminal_is_plain_lines(run, capsys):
    run(dataset(), progress=True)
    lines = capsys.readouterr().err.split("\n")
    assert any("3 of 3 clips" in line and "clip/s" in line and "s of audio/s" in line for line in lines)
    assert not any("\x1b" in line or "%|" in line for line in lines)
    run(dataset(), progress=False)
    assert capsys.readouterr().err == ""
