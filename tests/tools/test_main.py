"""`python -m orpheus VERB`: the verbs, and those that live in the package alone."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import orpheus
from orpheus.__main__ import VERBS, main
from orpheus.config import CorpusOptions
from orpheus.data.prepare import PrepareOptions
from orpheus.data.prepare import main as prepare
from orpheus.tools import doctor
from tests.support.corpus_fixtures import write_metadata

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs_with_a_line_each(arguments, capsys):
    main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(VERBS) and lines[0].startswith("usage: orpheus VERB")
    assert all(len(line) < 100 for line in lines)


def test_an_unknown_verb_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["sing"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == f"error: there is no verb 'sing': expected one of {', '.join(VERBS)}\n"


def test_a_verb_loads_its_own_module_and_takes_its_options():
    code = ("import sys; from orpheus.__main__ import main\n"
            "try: main(['speak', '--help'])\n"
            "except SystemExit as e: assert e.code == 0\n"
            "others = {'orpheus.evaluate.evaluate', 'orpheus_sft_unsloth', 'torch'} & set(sys.modules)\n"
            "sys.exit(', '.join(others) or 0)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: orpheus speak" in done.stdout and "--transcribe" in done.stdout


def test_the_version_is_told(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"orpheus {orpheus.__version__}\n"


# ---- doctor ----


def test_the_doctor_finds_this_environment_healthy(capsys):
    doctor.main(doctor.DoctorOptions())
    out = capsys.readouterr().out
    assert "can be trained here" in out and "missing " not in out
    for name in ("Python", "torch", "jiwer", "GPU", "memory", "embedded base", "hub cache", "flite"):
        assert f"\n{name}" in "\n".join(line[8:] for line in ["", *out.splitlines()]), name
    assert len(out.splitlines()) < 45  # one screen


def test_the_doctor_names_what_is_missing_and_how_to_get_it(monkeypatch, capsys):
    def version(package: str) -> str:
        if package in ("trl", "pocketsphinx"):
            raise metadata.PackageNotFoundError(package)
        return "0.1" if package == "sentencex" else real(package)

    real = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SystemExit) as stopped:
        doctor.main(doctor.DoctorOptions())
    out = capsys.readouterr().out
    assert stopped.value.code == 1 and "without peft, trl" in out
    assert "pip install 'trl>=" in out and "can't be imported" in out and "pip install pocketsphinx" in out
    assert "0.1; tested with" in out


# ---- prepare ----


def test_prepare_reports_and_leaves_the_codes(base_dir, codec_dir, tmp_path, capsys):
    folder = write_metadata(tmp_path / "recordings", ".csv")
    (folder / "clips" / "1.wav").write_bytes(b"")
    options = PrepareOptions(base=str(base_dir), codec=str(codec_dir), report=tmp_path / "report.txt",
                             corpus=CorpusOptions(dataset=str(folder), cache_dir=tmp_path / "codes",
                                                  max_rejected=0.5))  # fmt: skip
    prepare(options)
    out = capsys.readouterr().out
    assert "2 of 3" in out and "1 empty" in out
    assert "clips/1.wav: empty" in (tmp_path / "report.txt").read_text()
    assert len(list((tmp_path / "codes").rglob("*.npz"))) == 2
