"""report.html: samples beside recordings, curves, what was left out; whole without any of them."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest

from orpheus.audio import recordings
from orpheus.config import DEFAULT_PROMPTS, CorpusOptions, SftOptions, as_dict
from orpheus.errors import UserError
from orpheus.model.provenance import Provenance, write_json
from orpheus.tools import train
from orpheus.tools.report import write_report

TONE = (0.3 * np.sin(np.arange(24_000) / 8)).astype(np.float32)


@pytest.fixture
def voice(tmp_path, adapter_dir):
    """A folder like that of a finished training, on four recordings."""
    data = tmp_path / "data"
    rows = ["file_name,text,source", 'a.wav,"Oh, <laughs> fine.",anna', "b.wav,Good day.,anna",
            "c.wav,<sighs> No.,anna", "d.wav,I am ben.,ben"]  # fmt: skip
    for name in "abcd":
        recordings.write(data / f"{name}.wav", TONE)
    (data / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    folder = tmp_path / "lora_anna"
    shutil.copytree(adapter_dir, folder)
    about = json.loads((folder / "orpheus.json").read_text())
    config = as_dict(SftOptions(corpus=CorpusOptions(dataset=str(data))))
    write_json(folder / "orpheus.json", about | {"voices": ["anna"], "config": config, "results": {
        "validation_loss": 4.25, "why": "step 5 is kept", "gates": {"ended": 0.5}}})  # fmt: skip
    (folder / "corpus_report.txt").write_text("rejected clips:\nz.wav: silent: <nothing>\n", encoding="utf-8")
    return folder


@pytest.fixture
def samples(tmp_path):
    """Three spoken files with their .json."""
    paths = []
    for number, text in enumerate(DEFAULT_PROMPTS):
        path = recordings.write(tmp_path / "spoken" / f"output_{number}.wav", TONE)
        ended = "end_of_speech" if number else "max_new_tokens"
        about = {"text": text, "voice": "anna", "seed": number, "model": {"base": "b"}, "finish_reason": ended}
        write_json(path.with_suffix(".json"), about)
        paths.append(path)
    return paths


def test_everything_is_in_it(voice, samples):
    page = write_report(voice, samples, voice / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 6 and page.count("spectrogram of: ") == 6
    for said in ("&lt;giggles&gt;", "Oh, &lt;laughs&gt; fine.", "output_0.wav", "4.250", "gate: ended", "50%",
                 '<span class="bad">max_new_tokens</span>', "step 5 is kept", "z.wav: silent: &lt;nothing&gt;",
                 "synthetic speech"):  # fmt: skip
        assert said in page, said
    assert "I am ben." not in page, "another voice's"
    assert "<code>anna</code>" in page and "`" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_a_recording_has_its_sample_s_tags_where_there_is_one(voice, samples):
    page = write_report(voice, samples, voice / "report.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr><td>.*?</tr>", page, re.DOTALL)
    assert "&lt;sighs&gt; No." in rows[1] and "Oh, &lt;laughs&gt; fine." in rows[2]


def test_no_recording_is_in_what_is_uploaded(voice, samples, tmp_path):
    page = write_report(voice, samples, tmp_path / "up.html", recordings=False).read_text(encoding="utf-8")
    assert page.count("<audio") == 3 and "Oh, &lt;laughs&gt; fine." not in page
    assert "z.wav" not in page and str(tmp_path) not in page


def test_what_is_missing_is_said(voice, samples, tmp_path):
    shutil.rmtree(tmp_path / "data")
    (voice / "corpus_report.txt").unlink()
    samples[0].unlink()
    page = write_report(voice, samples, voice / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 2 and "There are no recordings beside them: " in page
    assert "corpus_report.txt is not there" in page
    assert "No samples were spoken" in write_report(voice, [], voice / "report.html").read_text(encoding="utf-8")


def test_too_few_recordings(voice, samples, tmp_path):
    (tmp_path / "data" / "metadata.csv").write_text("file_name,text,source\na.wav,Oh.,anna\n", encoding="utf-8")
    page = write_report(voice, samples, voice / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") == 3 and "too few recordings of the voice" in page


def test_a_folder_without_an_adapter(tmp_path):
    with pytest.raises(UserError, match=r"no orpheus\.json"):
        write_report(tmp_path, [], tmp_path / "report.html")


def test_uploading_comes_last_and_without_recordings(voice, samples, monkeypatch, capsys):
    sent = []

    def upload(folder, repo, report):
        sent.append(report.read_text(encoding="utf-8"))
        return "https://hub/x"

    monkeypatch.setattr("orpheus.model.upload.upload", upload)
    options = SftOptions(output_dir=voice)
    train.present(options, samples)
    assert not sent and (voice / "report.html").is_file()
    pushed = train.replace(options, train=train.replace(options.train, push_to_hub=True, hub_repo_id="me/voice"))
    train.present(pushed, samples)
    assert sent[0].count("<audio") == 3 and "uploaded to https://hub/x" in capsys.readouterr().out
    assert Provenance.load(voice) is not None
