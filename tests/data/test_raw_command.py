"""`orpheus prepare RECORDINGS --out FOLDER`, with the embedded voice's recordings and a stand-in for Whisper."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from orpheus.audio import recordings
from orpheus.config import DATA_DIR, CorpusOptions
from orpheus.data import prepare
from orpheus.data.prepare import PrepareOptions
from orpheus.data.raw import command, working
from orpheus.data.raw.listening import runs
from orpheus.data.raw.options import RawOptions
from orpheus.data.sources import open_source
from orpheus.errors import MissingPackage, UserError
from orpheus.hearing.pauses import STEP, levels_db
from orpheus.hearing.whisper import Word

pytest.importorskip("silero_vad", reason="cutting recordings needs silero-vad")
pyloudnorm = pytest.importorskip("pyloudnorm", reason="cutting recordings needs pyloudnorm")
pytest.importorskip("faster_whisper", reason="cutting recordings needs faster-whisper")

RATE = recordings.SAMPLE_RATE_HZ
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Finn", "Greta", "Hans", "Ida", "Jan")


class Listener:
    """Hears a name in each span of speech. `stops_at`: the call at which somebody presses Ctrl-C."""

    calls = 0
    stops_at = -1

    def __init__(self, model: str, language: str, callers: int) -> None:
        pass

    def listen(self, samples: np.ndarray) -> list[Word]:
        cls = type(self)
        cls.calls += 1
        if cls.calls == cls.stops_at:
            raise KeyboardInterrupt
        levels = np.convolve(levels_db(samples) > -50, np.ones(15), "same") > 0  # quicker than the detector
        words = zip(((STEP * a, STEP * b) for a, b in runs(levels)), itertools.cycle(NAMES), strict=False)
        return [Word(f" {name}.", a / RATE, b / RATE, 0.9) for (a, b), name in words]

    def describe(self, samples: np.ndarray) -> list[str]:
        return ["laughs"]


@pytest.fixture(autouse=True)
def listener(monkeypatch) -> type[Listener]:
    made = type("Made", (Listener,), {"calls": 0})
    monkeypatch.setattr(working, "Whisper", made)
    return made


@pytest.fixture(scope="module")
def long_recording() -> np.ndarray:
    """Some clips of the embedded voice with a second of room noise around each; 40 s."""
    rng = np.random.default_rng(3)
    with open(DATA_DIR / "corpus" / "metadata.csv", encoding="utf-8") as file:
        names = [row["file_name"] for row in csv.DictReader(file) if "<" not in row["text"]]
    parts = [np.zeros(RATE, np.float32)]
    while sum(map(len, parts)) < 40 * RATE:
        parts += [recordings.read(DATA_DIR / "corpus" / names[len(parts)]), np.zeros(RATE, np.float32)]
    samples = np.concatenate(parts)
    return samples + rng.normal(0, 3e-4, len(samples)).astype(np.float32)


@pytest.fixture
def raw(tmp_path, long_recording) -> Path:
    """A folder with one long recording."""
    (tmp_path / "raw").mkdir()
    soundfile.write(tmp_path / "raw" / "long talk.wav", long_recording, RATE)
    return tmp_path / "raw"


@pytest.fixture(scope="module")
def first_run(tmp_path_factory, long_recording) -> tuple[Path, str]:
    """A long recording, the folder made of it, and the summary."""
    raw = tmp_path_factory.mktemp("first") / "raw"
    raw.mkdir()
    soundfile.write(raw / "long talk.wav", long_recording, RATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(working, "Whisper", Listener)
        return raw, run(raw, voice="anna")[0]


@pytest.fixture
def done(first_run, tmp_path) -> Path:
    """A folder of recordings, and beside it `voice`, made of them: copies."""
    shutil.copytree(first_run[0].parent, tmp_path / "copy")
    return tmp_path / "copy" / "raw"


def run(raw: Path, **options) -> tuple[str, Path]:
    """The summary and the folder that was made beside `raw`."""
    out = options.pop("out", raw.parent / "voice")
    options = RawOptions(**{"out": out, "whisper_model": "tiny.en"} | options)
    command.check(str(raw), options)
    return command.run(str(raw), options), out


def table(out: Path, name: str = "decisions.csv") -> list[dict[str, str]]:
    with open(out / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def edit(out: Path, rows: list[dict[str, str]]) -> None:
    with open(out / "decisions.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}


def test_a_long_recording_becomes_a_data_set(first_run):
    out, said = first_run[0].parent / "voice", first_run[1]
    rows, clips = table(out), table(out, "metadata.csv")
    assert len(clips) > 7 and all(row["decision"] == "keep" for row in rows)
    assert [c["file_name"] for c in clips] == [r["clip"] for r in rows] and {c["source"] for c in clips} == {"anna"}
    assert sorted(path.name for path in (out / "clips").iterdir()) == sorted(Path(c["file_name"]).name for c in clips)
    for row in rows:
        samples = recordings.read(out / row["clip"])
        length_s = float(row["end_s"]) - float(row["start_s"]) + 0.3
        assert len(samples) / RATE == pytest.approx(length_s, abs=0.01) and 1.0 <= length_s <= 15.0
        assert pyloudnorm.Meter(RATE).integrated_loudness(samples.astype(float)) == pytest.approx(-23, abs=0.5)
        assert np.abs(samples).max() <= 0.9
    source = open_source(CorpusOptions(dataset=str(out)))
    assert source.count == len(clips)
    assert f"{len(clips)} in {out}" in said and f"orpheus doctor {out}" in said


def test_the_same_command_again_does_nothing_twice(done, listener):
    before = stamps(done.parent / "voice")
    said, out = run(done, voice="anna")
    assert listener.calls == 0 and stamps(out) == before and "by hand" not in said


def test_interrupted_it_goes_on(raw, listener, first_run):
    listener.stops_at = 2
    with pytest.raises(KeyboardInterrupt):
        run(raw)
    out = raw.parent / "voice"
    assert not (out / "metadata.csv").exists() and listener.calls == 2
    listener.stops_at = -1
    run(raw, voice="anna")
    assert listener.calls == 3, "what was heard before is heard again"
    assert table(out) == table(first_run[0].parent / "voice")


def test_edits_are_taken_and_stay(done):
    out = done.parent / "voice"
    rows, before = table(out), stamps(out)
    rows[0]["text"] = "Something else."
    rows[1]["decision"] = "drop"
    rows[2]["end_s"] = str(float(rows[2]["end_s"]) - 0.3)
    taken_out = rows.pop(3)
    edit(out, rows)
    said, _ = run(done, voice="anna")
    clips = {c["file_name"]: c["text"] for c in table(out, "metadata.csv")}
    assert clips[rows[0]["clip"]] == "Something else."
    assert rows[1]["clip"] not in clips and taken_out["clip"] not in clips
    after = stamps(out)
    assert set(before) - set(after) == {Path(r["clip"]).name for r in (rows[1], taken_out)}
    assert [name for name in after if after[name] != before[name]] == [Path(rows[2]["clip"]).name]
    assert "3 rows edited, 1 taken out" in said
    run(done, longest=8.0)  # decided anew
    now = {r["clip"]: r for r in table(out)}
    assert now[rows[0]["clip"]]["text"] == "Something else." and now[rows[1]["clip"]]["decision"] == "drop"
    assert now[rows[2]["clip"]]["end_s"] == rows[2]["end_s"] and taken_out["clip"] not in now


def test_another_length_is_cut_anew_and_nothing_is_heard_again(done, listener):
    _, out = run(done, longest=5.0, loudness=-30.0)
    lengths = [recordings.read(out / c["file_name"]) for c in table(out, "metadata.csv")]
    assert listener.calls == 0 and max(map(len, lengths)) <= 5 * RATE
    loudness = pyloudnorm.Meter(RATE).integrated_loudness(lengths[0].astype(float))
    assert loudness == pytest.approx(-30, abs=0.5)


def test_a_changed_recording_is_decided_anew_and_the_old_table_kept(done, long_recording):
    out = done.parent / "voice"
    rows = table(out)
    rows[0]["text"] = "Of the old recording."
    edit(out, rows)
    soundfile.write(done / "long talk.wav", long_recording[RATE // 2 :], RATE)
    said, _ = run(done)
    assert "long talk.wav changed" in said
    assert table(out, "decisions.before.csv") == rows
    assert "Of the old recording." not in {r["text"] for r in table(out)}


def test_a_transcript_beside_it_gives_the_words(done):
    out = done.parent / "voice"
    heard = [r["text"] for r in table(out)]
    written = " ".join(heard).replace("Anna.", "[laughs] Anna!").replace("Ben.", "Benn.")
    (done / "long talk.txt").write_text(f"A title nobody reads out. {written}", encoding="utf-8")
    run(done)
    assert all(r["decision"] == "keep" for r in table(out))
    texts = [r["text"] for r in table(out)]
    assert texts == [text.replace("Anna.", "Anna!").replace("Ben.", "Benn.") for text in heard]
    assert ["Anna!" in r["text"] for r in table(out)] == ["<laughs> in" in r["suggested_tags"] for r in table(out)]


def test_a_transcript_of_something_else_is_said_and_not_used(done):
    (done / "long talk.srt").write_text("1\n00:00:01,000 --> 00:00:09,000\nIt rained all day.\n", encoding="utf-8")
    said, out = run(done)
    assert "has 0% of the words heard in long talk.wav: is it of another recording" in said
    assert not table(out, "metadata.csv") and {r["decision"] for r in table(out)} == {"drop"}


def test_a_table_of_whole_recordings_gives_words_and_voices(done):
    out = done.parent / "voice"
    written = " ".join(r["text"] for r in table(out)).replace("Anna.", "Anna!")
    with open(done / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text", "source"), ("./long talk.wav", written, "ben")])
    run(done)
    clips = table(out, "metadata.csv")
    assert {c["source"] for c in clips} == {"ben"} and "Anna!" in " ".join(c["text"] for c in clips)


def test_a_full_disk_is_one_line_and_what_was_heard_stays(raw, monkeypatch, listener):
    def full(*args, **more):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(command, "cut_all", full)
        with pytest.raises(UserError, match="can't work in .*voice: No space left on device; what is finished is kept"):
            run(raw)
    calls = listener.calls
    run(raw)
    assert listener.calls == calls


def test_several_recordings_in_folders_at_any_rate(done, long_recording):
    raw = done
    part = long_recording[: 15 * RATE]
    (raw / "day 2").mkdir()
    soundfile.write(raw / "day 2" / "a.flac", np.stack([part, part], 1)[::3], 8000)
    soundfile.write(raw / "day 2" / "a.mp3", part, RATE)
    (raw / "notes.txt").write_text("nothing", encoding="utf-8")
    (raw / "broken.wav").write_bytes(b"RIFF....")
    soundfile.write(raw / "silent.wav", np.zeros(5 * RATE), RATE)
    said, out = run(raw)
    rows = table(out)
    assert {r["recording"] for r in rows} == {
        "long talk.wav",
        "day 2/a.flac",
        "day 2/a.mp3",
        "broken.wav",
        "silent.wav",
    }
    assert len({r["clip"] for r in rows}) == len(rows)
    assert "telephone quality" in next(r["reason"] for r in rows if r["recording"] == "day 2/a.flac")
    assert "broken.wav: unreadable: " in said and "silent.wav: no words are heard in it" in said
    assert "notes.txt: no recording of that name" in said


def test_a_sound_without_a_word_is_suggested_and_never_put_in(raw, listener, monkeypatch):
    whole = listener.listen
    monkeypatch.setattr(listener, "listen", lambda self, samples: whole(self, samples)[1:])  # the first span: no word
    _, out = run(raw)
    rows = table(out)
    assert any("<laughs> at " in r["suggested_tags"] for r in rows) and not any("<" in r["text"] for r in rows)


def test_laughter_that_whisper_wrote_as_words_is_suggested(raw, monkeypatch):
    monkeypatch.setattr("tests.data.test_raw_command.NAMES", ("Oh no, ha, ha, ha", "He has a hat"))
    _, out = run(raw)
    rows = [r for r in table(out) if "ha, ha" in r["text"]]
    assert rows and all("<laughs> for 'ha, ha, ha'" in r["suggested_tags"] for r in rows)
    assert all("<laughs>" not in r["suggested_tags"] for r in table(out) if "ha, ha" not in r["text"])


# ---- what is refused ----


@pytest.mark.parametrize("options, why", [
    (PrepareOptions(raw=RawOptions(language="fr")), "--language is for raw recordings, and there is no --out"),
    (PrepareOptions(raw=RawOptions(out=Path("x"))), "--out makes a data set of raw recordings: name the file"),
    (PrepareOptions(shard="0/2", raw=RawOptions(out=Path("x"))), "--shard is for a data set, and --out makes one"),
    (PrepareOptions(corpus=CorpusOptions(dataset="y", limit=3), raw=RawOptions(out=Path("x"))), "--limit is for"),
    (PrepareOptions(corpus=CorpusOptions(dataset="no/such"), raw=RawOptions(out=Path("x"))), "there is no file"),
])  # fmt: skip
def test_options_that_do_not_go_together(options, why):
    with pytest.raises(UserError, match=why):
        prepare.main(options)


@pytest.mark.parametrize("given, why", [
    ({"shortest": 20}, "shortest is 20 and longest 15, expected a larger longest"),
    ({"loudness": 3}, "loudness is 3"), ({"language": "English"}, "expected a code of two letters"),
])  # fmt: skip
def test_options_out_of_range(given, why):
    with pytest.raises(UserError, match=why):
        RawOptions(**given)


def test_a_folder_with_something_else_is_left_alone(raw):
    out = raw.parent / "full"
    out.mkdir()
    (out / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="holds something else .diary.txt.: name a new folder"):
        run(raw, out=out)
    with pytest.raises(UserError, match="where the recordings are: name a new folder"):
        run(raw, out=raw)
    assert [path.name for path in out.iterdir()] == ["diary.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_t_be_written_to(raw):
    raw.parent.chmod(0o500)
    try:
        with pytest.raises(UserError, match="can't be written to: name another folder"):
            run(raw)
    finally:
        raw.parent.chmod(0o700)


def test_a_folder_without_recordings_says_what_it_holds(tmp_path):
    with pytest.raises(UserError, match="holds no recordings .it holds nothing.: expected .wav"):
        (tmp_path / "raw").mkdir()
        run(tmp_path / "raw")
    (tmp_path / "raw" / "notes.pdf").write_bytes(b"")
    with pytest.raises(UserError, match="it holds notes.pdf"):
        run(tmp_path / "raw")


def test_missing_packages_are_named_with_one_command(raw, monkeypatch):
    found = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec",
                        lambda name: None if name in ("silero_vad", "pyloudnorm") else found(name))  # fmt: skip
    with pytest.raises(MissingPackage, match="'silero-vad', 'pyloudnorm'.* run  pip install silero-vad pyloudnorm"):
        run(raw)
