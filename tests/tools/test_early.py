"""Mistakes are told before PyTorch loads: each runs in a process where importing it fails, so the order is proven."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orpheus.config import DATA_DIR

ROOT = Path(__file__).resolve().parents[2]
PATHS = (ROOT / "tests" / "support" / "torchless", ROOT)
TINY = ("--no-adapter", "--preset", "tiny", "--voice", "tara")
TRAIN = ("train", "--preset", "tiny", "--dataset", "good.csv")
LIMIT_S = 2.0
LORA = '{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}'


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with things that are wrong, each in its own way."""
    folder = tmp_path_factory.mktemp("early")
    (folder / "file").write_text("hi")
    (folder / "there.flac").write_text("")
    (folder / "empty").mkdir()
    (folder / "good.csv").write_text("file_name,text\n1.wav,hello there\n")
    (folder / "columns.csv").write_text("recording,words\n1.wav,hello there\n")
    (folder / "bad.txt").write_text("Hello there.\nOh <laugh no.\n")
    (folder / "empty.txt").write_text("\n")
    (folder / "latin.txt").write_bytes("Über".encode("latin-1"))
    (folder / "no_weights").mkdir()
    (folder / "no_weights" / "config.json").write_text("{}")
    for name, config in (("cut", LORA), ("config", "{"), ("plain", LORA)):
        adapter = folder / name
        adapter.mkdir()
        (adapter / "adapter_config.json").write_text(config)
        (adapter / "adapter_model.safetensors").write_bytes(b"cut")
        if name != "plain":
            shutil.copy(DATA_DIR / "tiny_orpheus" / "orpheus.json", adapter)
    for name, info in (("saved", '{"features": {"recording": {}, "text": {}}}'), ("damaged", "{")):
        (folder / name).mkdir()
        (folder / name / "state.json").write_text("{}")
        (folder / name / "dataset_info.json").write_text(info)
    (folder / "splits").mkdir()
    (folder / "splits" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    (folder / "garbled").mkdir()
    shutil.copytree(folder / "cut", folder / "garbled", dirs_exist_ok=True)
    (folder / "garbled" / "orpheus.json").write_text("[1")
    return folder


MISTAKES = {
    # folders, columns
    ("train", "--preset", "tiny", "--dataset", "no/such/folder"): "no file or folder no/such/folder",
    ("train", "--preset", "tiny", "--dataset", "empty"): "is no data set",
    ("train", "--preset", "tiny", "--dataset", "columns.csv"): "'text': it has recording, words",
    ("train", "--dataset", "columns.csv"): "no header with a column 'text'",
    ("train", "--preset", "tiny", "--dataset", "saved"): "has no column 'audio': it has recording, text",
    ("train", "--preset", "tiny", "--dataset", "damaged"): "is a damaged saved data set (dataset_info.json",
    ("train", "--preset", "tiny", "--dataset", "splits", "--split", "dev"): "no split 'dev': it has train, test",
    (*TRAIN, "--text-column", "words"): "has no column 'words'",
    (*TRAIN, "--voice-column", "speaker"): "has no column 'speaker'",
    ("prepare", "--preset", "tiny", "--dataset", "no/such/folder"): "no file or folder",
    ("prepare", "--preset", "tiny", "--dataset", "columns.csv"): "no header with a column 'text'",
    ("evaluate", "--preset", "tiny", "--corpus", "no/such/folder"): "no file or folder",
    ("evaluate", "--preset", "tiny", "--corpus", "columns.csv"): "no header with a column 'text'",
    ("evaluate", "--preset", "tiny", "--domain", "none.txt"): "can't read the domain's texts from none.txt",
    # bases, codecs, adapters
    (*TRAIN, "--base", "./none"): "base model: there is no folder none",
    (*TRAIN, "--codec", "./none"): "codec: there is no folder none",
    (*TRAIN, "--codec", "no_weights"): "has no weights",
    ("prepare", "--preset", "tiny", "--base", "empty"): "has no config.json",
    ("speak", "hello"): "no adapter in 'lora_model'",
    ("speak", "hello", "--adapter", "empty"): "no adapter in 'empty'",
    ("speak", "hello", "--adapter", "plain"): "so name the base",
    ("speak", "hello", "--adapter", "cut", "--voice", "tara"): "is damaged",
    ("speak", "hello", "--adapter", "config"): "adapter_config.json is damaged",
    ("speak", "hello", "--adapter", "garbled"): "orpheus.json is damaged",
    ("speak", "hello", "--no-adapter", "--base", "./none"): "there is no folder none",
    ("speak", "hello", "--no-adapter", "--base", "none.gguf"): "there is no file none.gguf",
    ("speak", "hello", *TINY, "--codec", "./none"): "codec: there is no folder none",
    ("speak", "hello", *TINY, "--engine", "remote"): "needs the address of the server",
    ("speak", "hello", *TINY, "--device", "gpu"): "unknown device 'gpu'",
    ("evaluate", "--adapter", "empty"): "no adapter in 'empty'",
    ("evaluate", "--preset", "tiny", "--compare", "empty"): "no adapter in 'empty'",
    ("serve", "--adapter", "empty"): "no adapter in 'empty'",
    ("serve", "--no-adapter", "--base", "./none"): "there is no folder none",
    ("serve", "--no-adapter", "--preset", "tiny", "--api-key-file", "none"): "can't read the API keys",
    ("export", "--adapter", "empty"): "no adapter in 'empty'",
    ("export", "--adapter", "cut"): "is damaged",
    ("export", "--base", "./none", "--codec", "x"): "there is no folder none",
    ("export", "--preset", "tiny", "--codec", "./none"): "there is no folder none",
    # voices, tags, brackets
    (
        "speak",
        "hello",
        "--no-adapter",
        "--preset",
        "tiny",
        "--voice",
        "bob",
    ): "unknown voice 'bob': this model knows dan",
    ("speak", "hello", "--no-adapter", "--preset", "tiny"): "knows several voices",
    (
        "speak",
        "--no-adapter",
        "--preset",
        "tiny",
        "--file",
        "bad.txt",
        "--voice",
        "dan",
    ): "'Oh <laugh no.' is not closed",
    ("speak", "Oh <> no.", *TINY): "'<>' in 'Oh <> no.' is not a tag",
    ("speak", "<unk> hi", *TINY): "language model's own mark",
    ("speak", "...", *TINY): "no letter, digit or tag",
    ("speak", "Oh <laugh no.", "--stream", *TINY): "is not closed",
    ("speak", "--file", "none.txt", *TINY): "can't read the prompts from none.txt",
    ("speak", "--file", "empty.txt", *TINY): "every line is empty",
    ("evaluate", "--preset", "tiny", "--voice", "bob"): "no clip of",
    ("serve", "--no-adapter", "--preset", "tiny", "--voice", "bob"): "unknown voice 'bob'",
    ("serve", "--no-adapter", "--preset", "tiny", "--alias", "alloy=bob"): "unknown voice 'bob'",
    # figures, outputs
    (*TRAIN, "--r", "0"): "LoRA r is 0",
    (*TRAIN, "--target-modules", "lm_head"): "one tied matrix",
    (*TRAIN, "--target-modules", "query"): "query are not in this model",
    (*TRAIN, "--push-to-hub"): "give --hub-repo-id",
    (*TRAIN, "--output-dir", "file"): "--output-dir is file, and file is a file",
    (*TRAIN, "--samples-dir", "file"): "--samples-dir is file",
    ("prepare", "--preset", "tiny", "--shard", "5"): "the shard is '5'",
    ("prepare", "--preset", "tiny", "--report", "empty"): "which is a folder",
    ("prepare", "--preset", "tiny", "--device", "gpu"): "unknown device",
    ("speak", "--file", "latin.txt", *TINY): "byte 0xdc in line 1 is not UTF-8",
    ("speak", "one", "two", *TINY, "--out", "both.wav"): "--out is the file both.wav, and there are 2 texts",
    ("speak", "one", *TINY, "--out", "there.flac"): "there.flac exists already",
    ("speak", "one", *TINY, "--out", "one.m4a"): "expected a folder, or a file in .wav, .flac",
    ("speak", "one", *TINY, "--stream", "--out", "one.mp3"): "or a file in .wav, for what is streamed",
    ("speak", "hello", *TINY, "--out", "file/wavs"): "--out is file/wavs, and file is a file",
    ("evaluate", "--preset", "tiny", "--out", "file"): "--out is file",
    ("export", "--preset", "tiny", "--out", "empty"): "empty exists already",
    ("export", "--preset", "tiny", "--out", "file/x"): "file is a file",
    ("export", "--preset", "tiny", "--device", "gpu"): "unknown device",
}


ALL_OF = """
import contextlib, io, json, logging, sys
from orpheus.__main__ import main

said = []
for arguments in json.loads(sys.stdin.read()):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    said.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""


def python(*arguments: str, place: Path, stdin: str = "") -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, PATHS)), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=place, env=environment, timeout=100, capture_output=True,
                          text=True, input=stdin)  # fmt: skip


@pytest.mark.parametrize("verb", dict.fromkeys(arguments[0] for arguments in MISTAKES))
def test_mistakes_are_told_before_pytorch_loads(verb, place):
    mistakes = [arguments for arguments in MISTAKES if arguments[0] == verb]
    done = python("-c", ALL_OF, place=place, stdin=json.dumps(mistakes))
    assert done.returncode == 0, done.stderr
    answers = dict(zip(mistakes, json.loads(done.stdout), strict=True))
    for arguments, (code, out, err) in answers.items():
        assert (code, out) == (2, ""), (arguments, code, err)
        assert err.startswith("error: ") and err.count("\n") == 1, (arguments, err)
    assert not {err: MISTAKES[words] for words, (_, _, err) in answers.items() if MISTAKES[words] not in err}


def test_a_mistake_costs_little_time(place):
    """Processor time of the whole process, for the clock also counts what else runs on this machine."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python("-m", "orpheus", "speak", "Oh <laugh no.", *TINY, place=place)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 2 and done.stderr.startswith("error: a tag in 'Oh <laugh no.'")
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < LIMIT_S


def test_what_is_right_loads_pytorch(place):
    """The stand-in is in the way: what passes the checks meets it."""
    done = python("-m", "orpheus", "speak", "hello", *TINY, place=place)
    assert "PyTorch was loaded before the mistake was told" in done.stderr
