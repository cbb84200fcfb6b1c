"""README.md and docs/ can't rot: short, linked, no sentence twice, commands and snippets that run.

A Python block is run, all of them in order and in one namespace as in a notebook, unless the line above it is
`<!-- test: compile only, REASON -->`. The examples of metadata are opened as data sets. Shell commands are parsed, and
run in a folder with recordings and adapters, except those of `needs_more`.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import io
import itertools
import re
import shutil
import sys
from collections import defaultdict
from typing import Any, get_type_hints
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from benchmarks.gpu_smoke import Options as SmokeOptions
from orpheus.__main__ import VERBS, load
from orpheus.cli import parse
from orpheus.config import CorpusOptions
from orpheus.data.sources import open_source
from orpheus.engines.tensorrt.smoke import SmokeOptions as TensorrtOptions
from orpheus.evaluate.listen import Ears
from orpheus.tools.bench import BENCHMARKS, find
from tests.support.pages import BESIDE, DOCS, PAGES, README, ROOT
from tests.support.voices import some_codes

EVERY = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
SPANS = [span for page in PAGES for span in page.spans]

# ---- shape ----


def test_the_readme_is_short_and_in_order():
    assert README.text.count("\n") <= 200 and len(README.text.encode()) <= 12_000
    assert re.findall(r"^## (.*)$", README.text, re.MULTILINE) == [
        "Install", "Hear it in one minute", "Your recordings", "Train", "Speak", "Serve", "Measure and export",
        "The five commonest errors", "Map", "Licence and consent"]  # fmt: skip
    assert set(DOCS) == {"data", "training", "speaking", "export", "engines", "evaluate", "serve", "deploy",
                         "performance", "measured", "internals", "troubleshooting"}  # fmt: skip
    assert {page.name for page in DOCS.values()} <= set(README.links)
    (picture,) = re.findall(r"^!\[.{40,}\]\((\S+)\)$", README.text, re.MULTILINE)
    assert (ROOT / picture).stat().st_size < 100_000


@EVERY
def test_pages_are_short_and_leave_what_was_measured_to_its_page(page):
    assert page.text.count("\n") < 400 and max(map(len, page.prose.split("\n\n"))) < 6000
    if page not in (README, DOCS["measured"]):  # the README tells the state of the project in three lines
        owed = [line for line in page.prose.splitlines() if re.search(r"\bowed\b|not measured|not (been )?run\b", line)]
        assert all("measured.md" in line for line in owed), owed


def test_no_sentence_stands_in_two_places():
    places = defaultdict(list)
    for page in [*PAGES, *BESIDE]:
        for sentence in page.sentences():
            if len(sentence) >= 60:
                places[sentence].append(page.name)
    assert len(places) > 400
    assert {sentence: pages for sentence, pages in places.items() if len(pages) > 1} == {}


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=lambda page: page.name)
def test_links_resolve(page):
    for link in page.links:
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            target = (ROOT / page.name).parent / file if file else ROOT / page.name
            assert target.exists(), link
            pages = {ROOT / p.name: p for p in [*PAGES, *BESIDE]}
            assert not anchor or anchor in pages[target.resolve()].anchors, link


def test_no_address_is_invented():
    """speech.example.com stands for the reader's own server, and docs/deploy.md says so."""
    text = "\n".join(page.text for page in PAGES)
    hosts = {urlsplit(address).hostname for address in re.findall(r"https?://[^\s\"'`)>;]+", text)}
    assert hosts == {"github.com", "127.0.0.1", "speech.example.com", "orpheus"}
    assert "`speech.example.com` stands for" in DOCS["deploy"].text
    assert set(re.findall(r"git clone (\S+ ?[^\"\n]*\"?)", text)) == {'"<address of this repository>"'}


@EVERY
def test_files_that_are_named_exist(page):
    ours = re.compile(r"(orpheus|tests|data|docs|docker|examples|benchmarks|\.ci)/[\w./-]+|[\w-]+\.(py|toml)"
                      r"|(requirements|constraints)[\w-]*\.txt|LICENSE")  # fmt: skip
    foreign = {"decoder.py", "engine_class.py"}  # Canopy's
    named = {span for span in page.spans if ours.fullmatch(span)} - foreign
    named |= {word for command in page.commands() for word in command if re.match(r"(docker|benchmarks)/", word)}
    assert [name for name in named if not (ROOT / name).exists()] == []


# ---- commands ----

SCRIPTS = {"orpheus_sft_unsloth.py": load("train")[1], "inference.py": load("speak")[1],
           "benchmarks/gpu_smoke.py": SmokeOptions}  # fmt: skip
MODULES = {"orpheus.engines.tensorrt.smoke": TensorrtOptions}
FOREIGN = ("vllm.", "llama_cpp.", "sglang.", "examples/")


def ours(command: list[str]) -> tuple[str, list[str]] | None:
    """Which of our programs a command starts, and with which arguments; None for others."""
    words = [word for word in itertools.dropwhile(lambda w: "=" in w, command)]
    if words[0] == "accelerate":
        at = next(i for i, word in enumerate(words) if word.endswith(".py") or word == "-m")
        words = ["python", *words[at:]]
    if words[0] == "orpheus":
        words = ["python", "-m", *words]
    if words[0] != "python" or any(name in word for name in FOREIGN for word in words[1:3]):
        return None
    if words[1] != "-m":
        return words[1], words[2:]
    return (" ".join(words[2:4]), words[4:]) if words[2] == "orpheus" else (words[2], words[3:])


def options_of(program: str, arguments: list[str]) -> tuple[type, list[str]]:
    """The class of a program's options, and the arguments that it takes."""
    if program == "orpheus bench":
        return get_type_hints(find(arguments)[1].main)["options"], arguments[1:]
    verb = program.removeprefix("orpheus ")
    return (load(verb)[1] if verb in VERBS else (SCRIPTS | MODULES)[program]), arguments


COMMANDS = [command for page in PAGES for command in page.commands()]


def joined(command: tuple[str, list[str]]) -> str:
    return " ".join([command[0], *command[1]])


OURS = list({joined(found): found for c in COMMANDS if (found := ours(c))}.values())


@pytest.mark.parametrize("command", OURS, ids=joined)
def test_commands_parse(command):
    parse(*options_of(*command))


def test_every_program_is_shown():
    examples = [words for words in COMMANDS if words[0] == "python" and words[1].startswith("examples/")]
    for _, example, *arguments in examples:
        known = set(re.findall(r'add_argument\("(--[\w-]+)"', (ROOT / example).read_text(encoding="utf-8")))
        assert {word for word in arguments if word.startswith("--")} <= known
    programs = {program for program, _ in OURS}
    assert programs >= {"orpheus_sft_unsloth.py", "inference.py", "benchmarks/gpu_smoke.py"}
    assert programs >= {f"orpheus {verb}" for verb in VERBS} - {"orpheus train", "orpheus speak"}


def test_options_in_the_text_exist():
    texts = []
    programs = [(name, []) for name in (*SCRIPTS, *(f"orpheus {verb}" for verb in VERBS if verb != "bench"))]
    for program, arguments in programs + [("orpheus bench", [name]) for name in BENCHMARKS]:
        with contextlib.redirect_stdout(io.StringIO()) as text, pytest.raises(SystemExit):
            options, _ = options_of(program, arguments)
            parse(options, ["--help"])
        texts.append(text.getvalue())
    everything = "\n".join(texts)
    elsewhere = {"--help", "--build-arg", "--type_k", "--type_v"}  # docker's and llama-cpp-python's
    elsewhere |= {"--backend"}  # ours, and trtllm-serve's
    named = {word.partition("=")[0].rstrip(",.;:") for span in SPANS for word in span.split() if word.startswith("--")}
    assert len(named) > 40
    assert [o for o in named - elsewhere if not re.search(rf"(?<![\w.-]){o}(?![\w.-])", everything)] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {c[1] for c in COMMANDS if c[0] == "make"} | {s.split()[1] for s in SPANS if s.startswith("make ")}
    assert {"demo", "test"} <= named <= targets
    assert "`make test` is the test command" in README.text and ["make", "test"] in list(README.commands())


# ---- snippets and commands, run ----


@pytest.fixture
def drawn(monkeypatch):
    """An engine that draws five legal frames for every prompt."""
    from orpheus.engines.torch.engine import TorchEngine

    def stream(self, prompts, sampling, seeds):
        for token_id in [*self.layout.flatten(some_codes(5)), self.layout.end_of_speech]:
            yield from ((row, int(token_id)) for row in range(len(prompts)))

    monkeypatch.setattr(TorchEngine, "stream", stream)


@pytest.fixture
def notebook(adapter_dir, tmp_path, monkeypatch, drawn):
    """A folder with a random adapter in lora_model/."""
    monkeypatch.syspath_prepend(str(ROOT))
    shutil.copytree(adapter_dir, tmp_path / "lora_model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets_run(notebook, capsys):
    namespace: dict[str, Any] = {}
    for page in PAGES:
        for block in page.blocks("python"):
            program = compile(block.code, f"{page.name}, line {block.line}", "exec")
            if not block.compile_only:
                exec(program, namespace)
    out = capsys.readouterr().out
    assert "0.43 s, end_of_speech" in out and "5 frames end_of_speech" in out and "learnt from 37" in out
    for name in ("hello.wav", "hello.json", "live.wav", "generated_audio/output_0.wav", "generated_audio/output_1.wav"):
        assert (notebook / name).is_file(), name
    assert namespace["model"].peft_config and namespace["tokenizer"]
    for call in (s for s in SPANS if s.startswith("OrpheusInference(")):
        names = {keyword.arg for keyword in ast.parse(call).body[0].value.keywords}
        assert names <= set(namespace["OrpheusInference"].__init__.__annotations__)


def test_snippets_that_are_not_run_import_what_there_is():
    for block in (block for page in PAGES for block in page.blocks("python") if block.compile_only):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("orpheus"):
                assert all(hasattr(importlib.import_module(node.module), alias.name) for alias in node.names)


def test_data_examples_are_data_sets(tmp_path):
    examples = [("csv", block.code) for page in PAGES for block in page.blocks("csv")]
    examples += [("jsonl", span) for span in SPANS if span.startswith('{"file_name"')]
    examples += [("csv", span) for span in SPANS if re.match(r"[\w-]+\|", span)]
    assert len(examples) == 3
    for number, (suffix, text) in enumerate(examples):
        folder = tmp_path / str(number)
        names = re.findall(r"clips/\w+\.\w+", text) or [f"wavs/{text.partition('|')[0]}.wav"]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name, np.full(4800, 0.1), 24000)
        (folder / f"metadata.{suffix}").write_text(text, encoding="utf-8")
        records = list(open_source(CorpusOptions(dataset=str(folder))).records())
        assert len(records) == len(names) == len(text.splitlines()) - text.startswith("file_name")
        assert all(len(record.samples()) > 4000 and record.text for record in records)
        assert {record.voice for record in records} == ({"anna"} if "source" in text else {None})


def needs_more(command: tuple[str, list[str]]) -> bool:
    """The hub, a server, llama.cpp, a GPU, or a test of its own: tests/serve, test_bench, test_raw_command, smoke."""
    program, arguments = command
    return program in ("orpheus serve", "orpheus bench", "benchmarks/gpu_smoke.py", *MODULES) or any(
        re.search(r"orpheus-3b|--server|vllm|gguf|tensorrt|^long_recordings$|^exported/|^/", word) for word in arguments
    )


@pytest.fixture
def desk(notebook):
    """The folder of somebody who tries the commands: recordings, texts, a second adapter."""
    corpus = (ROOT / "data" / "corpus" / "metadata.csv").read_text(encoding="utf-8").splitlines()
    for name in ("my_recordings", "my_voice", "held_out"):
        (notebook / name / "clips").mkdir(parents=True)
        (notebook / name / "metadata.csv").write_text("\n".join(corpus[:5]) + "\n", encoding="utf-8")
        for row in corpus[1:5]:
            shutil.copy(ROOT / "data" / "corpus" / row.split(",")[0], notebook / name / "clips")
    for name in ("lines.txt", "book.txt"):
        (notebook / name).write_text("One line.\nAnd another one.\n", encoding="utf-8")
    shutil.copytree("lora_model", "my_other_voice")
    return notebook


@pytest.mark.parametrize("command", [c for c in OURS if not needs_more(c)], ids=joined)
def test_commands_run(command, desk, monkeypatch, capfd):
    program, arguments = command
    options = parse(*options_of(program, arguments))
    if program in ("orpheus_sft_unsloth.py", "orpheus train"):  # one step, and no second process that speaks
        options = dataclasses.replace(options, speak_samples=False, overwrite=True,
                                      train=dataclasses.replace(options.train, max_steps=1))  # fmt: skip
    if program == "orpheus evaluate":  # tests/evaluate listens
        options = dataclasses.replace(options, limit=2, recogniser="none")
        monkeypatch.setattr("orpheus.evaluate.evaluate.find_ears", Ears)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello there.\n"))
    module = importlib.import_module(program.removesuffix(".py")) if program in SCRIPTS else load(program.split()[1])[0]
    module.main(options)
    said = capfd.readouterr()
    assert said.out or said.err
    if program in ("inference.py", "orpheus speak"):
        assert "--pcm" in arguments or list(desk.rglob("output_0.wav")) or options.out.is_file()
