"""`orpheus doctor DATASET`: a summary or JSON, and the report; mistakes are one line, told before the work."""

from __future__ import annotations

import json

import pytest

from orpheus.config import CorpusOptions
from orpheus.data.checkup.examine import Ears
from orpheus.errors import MissingPackage, UserError
from orpheus.hearing import quality, speakers
from orpheus.tools import checkup, doctor
from orpheus.tools.checkup import DoctorOptions
from tests.support.corpus_fixtures import write_metadata


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(checkup, "listen_with", lambda options: Ears(missing=["speakers: not here"]))
    monkeypatch.setattr(checkup, "_codec", lambda *_: [])
    corpus = CorpusOptions(dataset=str(write_metadata(tmp_path / "voice", ".csv")), cache_dir=tmp_path)
    return DoctorOptions(preset="tiny", report=tmp_path / "r.html", corpus=corpus)


def test_a_summary_and_a_report(options, capsys):
    doctor.main(options)
    out = capsys.readouterr().out
    assert "3 from" in out and "not looked at: speakers: not here" in out and f"report: {options.report}" in out
    assert "speakers: not here" in options.report.read_text("utf-8")


def test_json_alone_on_standard_output(options, capsys):
    checkup.check_up(DoctorOptions(**{**vars(options), "json": True}))
    said = json.loads(capsys.readouterr().out)
    assert said["clips"] == 3 and said["not_looked_at"] == ["speakers: not here"]


def test_mistakes_are_told_early(options, tmp_path):
    with pytest.raises(UserError, match="is a folder"):
        checkup.check_up(DoctorOptions(**{**vars(options), "report": tmp_path}))
    with pytest.raises(UserError, match="of no use with"):
        DoctorOptions(recogniser="none", whisper_model="small")


def test_what_is_not_there_is_said(monkeypatch):
    def missing(samples):
        raise MissingPackage("Resemblyzer", "comparing speakers")

    monkeypatch.setattr(speakers, "embed", missing)
    monkeypatch.setattr(quality, "dnsmos", missing)
    ears = checkup.listen_with(DoctorOptions(recogniser="none"))
    assert (ears.recogniser, ears.embed, ears.dnsmos) == (None, None, None)
    assert [line.split(":")[0] for line in ears.missing] == ["transcripts", "speakers", "listeners' opinion"]
