"""The two programs from the outside: help, the whole path, and one clear line for every mistake."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
import time
import wave
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
SFT, SPEAK = ROOT / "orpheus_sft_unsloth.py", ROOT / "inference.py"


def start(program: Path, *arguments: object, cwd: Path, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess:
    """The program as a shell starts it."""
    done = subprocess.run([sys.executable, str(program), *map(str, arguments)], cwd=cwd, input=stdin,
                          capture_output=True, text=True, encoding="utf-8")  # fmt: skip
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def run(program: Path, *arguments: object, cwd: Path, code: int = 0) -> subprocess.CompletedProcess:
    """The same in this process, which has loaded PyTorch already: seconds quicker. An exception fails the test."""
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", [str(program), *map(str, arguments)])
        try:
            runpy.run_path(str(program), run_name="__main__")
        except SystemExit as stopped:
            ended = stopped.code or 0
    assert ended == code, f"exit code {ended}\n{out.getvalue()}\n{err.getvalue()}"
    return subprocess.CompletedProcess(sys.argv, ended, out.getvalue(), err.getvalue())


def error_line(done: subprocess.CompletedProcess) -> str:
    """The one line that the user gets; a traceback fails the test."""
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("program", [SFT, SPEAK])
def test_help_is_quick_and_loads_nothing_heavy(program, tmp_path):
    started = time.process_time(), os.times().children_user
    text = start(program, "--help", cwd=tmp_path).stdout
    assert os.times().children_user - started[1] < 3
    assert "python " in text and "default" in text
    probe = (f"import sys, runpy; sys.argv = ['x', '--help']\n"
             f"try: runpy.run_path({str(program)!r}, run_name='__main__')\n"
             f"except SystemExit: pass\n"
             f"heavy = {{'torch', 'transformers', 'datasets', 'trl', 'snac', 'librosa'}} & set(sys.modules)\n"
             f"sys.exit(','.join(sorted(heavy)) or 0)")  # fmt: skip
    subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """Twelve recordings as users have them: WAV, FLAC, a stereo 44.1 kHz MP3; with metadata.csv."""
    from tests.support.codec_fixtures import speech_like

    folder = tmp_path_factory.mktemp("recordings")
    rows = ["file_name,text"]
    for i in range(12):
        name, rate = (f"{i}.mp3", 44100) if i == 3 else (f"{i}.flac", 22050) if i % 3 == 1 else (f"{i}.wav", 24000)
        sound = speech_like(0.8 + 0.05 * i, seed=i)
        if rate == 44100:
            sound = np.stack([sound, 0.5 * sound], axis=1)
        soundfile.write(folder / name, sound, rate)
        rows.append(f'{name},"Clip number {i}, <laughs> indeed."')
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def small(base_dir, codec_dir, clips) -> list[object]:
    return ["--base", base_dir, "--codec", codec_dir, "--dataset", clips, "--batch-size", 2,
            "--max-steps", 3, "--log-every", 1, "--r", 4]  # fmt: skip


def test_from_recordings_to_an_adapter(small, tmp_path):
    """Train on mixed formats, interrupt nothing, look at all that is left behind; over it only when asked."""
    for program, asked in ((start, []), (run, ["--overwrite"])):
        done = program(SFT, *small, "--no-speak-samples", *asked, cwd=tmp_path)
        assert "12 of 12" in done.stdout and "3 steps" in done.stdout
    refused = error_line(run(SFT, *small, "--no-speak-samples", cwd=tmp_path, code=2))
    assert "holds a finished adapter" in refused and "lora_model_2" in refused
    again = run(SFT, *small, "--no-speak-samples", "--resume", cwd=tmp_path)
    assert "finished already" in again.stdout and "3 steps" not in again.stdout
    folder = tmp_path / "lora_model"
    names = {p.name for p in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "orpheus.json", "loss.png", "training_log.json",
            "corpus_report.txt", "tokenizer.json", "README.md", "report.html"} <= names  # fmt: skip
    assert "12 clips" in (folder / "README.md").read_text(encoding="utf-8")
    assert "No samples were spoken" in (folder / "report.html").read_text(encoding="utf-8")
    assert "checkpoints" not in names and not [n for n in names if n.startswith(".")]
    made = json.loads((folder / "orpheus.json").read_text())
    assert made["tags"] == {"laughs": 12} and made["voices"] == [] and made["layout"]["audio_start"] == 269
    assert made["config"]["train"]["max_steps"] == 3 and made["config"]["train"]["push_to_hub"] is False
    assert made["versions"]["torch"] and made["data_hash"] and made["codec_identity"].startswith("snac-")


def test_speaking_from_arguments_file_and_stdin(tmp_path):
    (tmp_path / "lines.txt").write_text("Good morning.\n\nIt is a sunny day.\n", encoding="utf-8")
    done = start(SPEAK, "Hello there.", "-", "--file", "lines.txt", "--adapter", "None", "--preset", "tiny", "--voice",
                 "tara", "--seed", 7, "--max-new-tokens", 140, "--out", "wavs", "--transcribe", "auto", cwd=tmp_path,
                 stdin="How are you?\n")  # fmt: skip
    assert done.stdout.count("recognised by ") == 4
    wavs = sorted((tmp_path / "wavs").glob("*.wav"))
    assert [w.name for w in wavs] == [f"output_{i}.wav" for i in range(4)]
    for path in wavs:
        with wave.open(str(path)) as file:
            assert (file.getframerate(), file.getnchannels()) == (24000, 1) and file.getnframes() % 2048 == 0
        assert str(Path("wavs") / path.name) in done.stdout
    spoken = [json.loads(w.with_suffix(".json").read_text())["text"] for w in wavs]
    assert sorted(spoken) == sorted(["Hello there.", "Good morning.", "It is a sunny day.", "How are you?"])


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--dataset", "./nowhere"], "no file or folder"),
        (["--dataset", "MrDragonFox/Elise"], "MrDragonFox/Elise.*disabled.*Etherll/kaira.*embedded corpus"),
        (["--base", "canopylabs/orpheus-3b-0.1-ft"], "base model 'canopylabs/orpheus-3b-0.1-ft' can't be had"),
        (["--codec", "hubertsiuzdak/snac_24khz"], "codec 'hubertsiuzdak/snac_24khz' can't be had.*hf download"),
        (["--target-modules", "lm_head"], "tied matrix"),
        (["--preset", "orpheus-3b", "--base", "None", "--backend", "transformers"],
         "unsloth/orpheus-3b-0.1-ft' can't be had"),
        (["--push-to-hub", "--hub-repo-id", "me/voice"], "not logged in|offline"),
        (["--push-to-hub", "--hub-repo-id", "not an id"], "push-to-hub.*owner/name"),
        (["--push-to-hub"], "push-to-hub.*--hub-repo-id"),
        (["--max-seq-length", 40], "too long"),
    ],
)  # fmt: skip
def test_training_mistakes(small, arguments, says, tmp_path):
    import re

    options = [*small, *arguments]
    if "orpheus-3b" in arguments:
        options = [o for o in arguments if o not in ("--base", "None")]
    line = error_line(run(SFT, *options, cwd=tmp_path, code=2))
    assert re.search(says, line), line
    assert not (tmp_path / "lora_model" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("option", ["batch-size", "gradient-accumulation", "learning-rate", "log-every", "epochs"])
def test_training_options_out_of_range_are_named(option, tmp_path):
    done = run(SFT, f"--{option}", 0, cwd=tmp_path, code=2)
    assert f"{option.replace('-', '_')} is 0" in done.stderr and "Traceback" not in done.stderr


def test_empty_and_silent_recordings_are_reported(small, clips, tmp_path):
    import shutil

    bad = tmp_path / "bad"
    shutil.copytree(clips, bad)
    (bad / "0.wav").write_bytes(b"")
    soundfile.write(bad / "2.wav", np.zeros(24000), 24000)
    (bad / "5.wav").unlink()
    options = [bad if o == clips else o for o in small]
    line = error_line(run(SFT, *options, cwd=tmp_path, code=2))
    assert "25" in line and "max-rejected" in line.replace("_", "-")
    report = (tmp_path / ".cache" / "codes" / "rejected.txt").read_text()
    assert "empty" in report and "silent" in report and "unreadable" in report


def test_an_output_folder_that_can_t_be_written(small, tmp_path):
    (tmp_path / "file").write_text("in the way")
    line = error_line(start(SFT, *small, "--output-dir", "file/lora", cwd=tmp_path, code=2))
    assert "file/lora" in line and (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], "no adapter in 'lora_model'"),
        (["--adapter", "nowhere"], "no adapter in 'nowhere'"),
        (["--file", "none.txt"], "can't read the prompts from none.txt"),
        (["--file", "empty.txt"], "every line is empty"),
        (["--file", "latin.txt"], "can't read the texts"),
        (["--batch-size", "0"], "batch-size is 0"),
    ],
)
def test_speaking_mistakes(arguments, says, tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    line = error_line(run(SPEAK, *arguments, cwd=tmp_path, code=2))
    assert says in line, line
    assert not (tmp_path / "generated_audio").exists()


def test_options_out_of_range_are_named(tmp_path):
    done = start(SPEAK, "--temperature", "-1", "Hi", cwd=tmp_path, code=2)
    assert "temperature is -1.0, expected 0..10" in done.stderr and "Traceback" not in done.stderr


def test_mistakes_with_the_adapter_at_hand(adapter_dir, base_dir, tmp_path):
    """A text that is too long, a base that does not fit, a folder that can't be written."""
    long = error_line(run(SPEAK, "word " * 4000, "--adapter", adapter_dir, cwd=tmp_path, code=2))
    assert "the prompt has" in long and "context of 16384" in long
    gpu = error_line(run(SPEAK, "Hi", "--adapter", adapter_dir, "--device", "cuda", cwd=tmp_path, code=2))
    assert "no CUDA GPU" in gpu
    from tests.support.tiny import save_base

    other = save_base(tmp_path / "other", seed=3)
    line = error_line(run(SPEAK, "Hi", "--adapter", adapter_dir, "--base", other, cwd=tmp_path, code=2))
    assert "has other weights" in line
