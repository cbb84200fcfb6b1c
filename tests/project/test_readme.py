"""README.md can't rot: its commands parse, its snippets run, its tables, drawings, links and error texts are true.

A Python block is run, unless the line above it is `<!-- test: compile only, REASON -->`.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import soundfile

from benchmarks.gpu_smoke import Options as SmokeOptions
from inference import SpeakOptions
from orpheus import config
from orpheus.__main__ import VERBS, load
from orpheus.audio import recordings
from orpheus.cli import parse
from orpheus.codec import snac
from orpheus.data.sources import open_source
from orpheus.format import tokens
from orpheus.format.prompt import TAGS_BY_LANGUAGE, Renderer
from orpheus.speak.speech import Speech, Timings
from tests.support.voices import some_codes

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SMOKE = "benchmarks/gpu_smoke.py"
PROGRAMS: dict = {"orpheus_sft_unsloth.py": config.SftOptions, "inference.py": SpeakOptions, SMOKE: SmokeOptions}
PROGRAMS |= {f"-m orpheus {verb}": load(verb)[1] for verb in VERBS if verb not in ("train", "speak", "bench")}
SOURCES = [*ROOT.glob("*.py"), ROOT / SMOKE, *sorted((ROOT / "orpheus").rglob("*.py"))]
SOURCE_TEXT = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)


class Block(NamedTuple):
    line: int
    language: str
    code: str
    compile_only: bool


def blocks(*languages: str) -> list[Block]:
    pattern = r"^(?:(<!-- test: compile only, [^\n]+ -->)\n)?```(\w*)\n(.*?)^```$"
    found = re.finditer(pattern, TEXT, re.MULTILINE | re.DOTALL)
    every = [Block(TEXT.count("\n", 0, m.start(3)), m[2], m[3], bool(m[1])) for m in found]
    assert 2 * len(every) == len(re.findall(r"^ *```", TEXT, re.MULTILINE)), "a block the pattern does not see"
    return [block for block in every if block.language in languages]


PROSE = re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
SPANS = re.findall(r"`([^`\n]+)`", PROSE)


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def tables(first: str) -> list[list[dict[str, str]]]:
    """The tables whose first heading is `first`, each as its rows by heading."""
    found = []
    for lines in re.findall(r"(?:^\|.*\|\n)+", TEXT, re.MULTILINE):
        head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines())
        assert all(len(row) == len(head) for row in rows), lines
        if head[0] == first:
            found.append([dict(zip(head, row, strict=True)) for row in rows])
    assert found, f"no table with the heading {first}"
    return found


def codes_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


# ---- commands ----


def commands() -> Iterator[list[str]]:
    """Every command of the shell blocks, as words."""
    for block in blocks("bash"):
        for line in block.code.splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
            lexer.whitespace_split = True
            command: list[str] = []
            for word in [*lexer, "&&"]:
                if word in ("|", "&&", ";"):
                    yield command
                    command = []
                else:
                    command.append(word)


COMMANDS = [command for command in commands() if command and "bench" not in command]  # those: test_bench.py
PYTHON_COMMANDS = [[" ".join(c[1:4]), *c[4:]] if c[1] == "-m" else c[1:] for c in COMMANDS if c[0] == "python"]


@pytest.fixture(scope="module")
def help_texts() -> dict[str, str]:
    texts = {}
    for program in PROGRAMS:
        done = subprocess.run([sys.executable, *program.split(), "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        texts[program] = done.stdout
    return texts


def has_option(option: str, text: str) -> bool:
    return re.search(rf"(?<![\w.-]){re.escape(option)}(?![\w.-])", text) is not None


def test_programs_exist_and_know_the_options_of_the_commands(help_texts):
    assert {command[0] for command in PYTHON_COMMANDS} == set(PROGRAMS)
    for program, *arguments in PYTHON_COMMANDS:
        for option in (a.partition("=")[0] for a in arguments if a.startswith("--")):
            assert has_option(option, help_texts[program]), f"{program} has no {option}"


@pytest.mark.parametrize("command", PYTHON_COMMANDS, ids=" ".join)
def test_commands_parse(command):
    parse(PROGRAMS[command[0]], command[1:])


def test_options_in_the_text_exist(help_texts):
    options = {word.partition("=")[0] for span in SPANS for word in span.split() if word.startswith("--")}
    assert len(options) > 20
    for option in options - {"--help"}:
        assert any(has_option(option, text) for text in help_texts.values()), option


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {c[1] for c in COMMANDS if c[0] == "make"} | {s.split()[1] for s in SPANS if s.startswith("make ")}
    assert {"demo", "test"} <= named <= targets
    assert "`make test` is the test command" in TEXT and ["make", "test"] in COMMANDS


# ---- snippets ----


@pytest.fixture
def notebook(adapter_dir, tmp_path, monkeypatch):
    """A folder with a random adapter in lora_model/, and an engine that draws five legal frames for every prompt."""
    from orpheus.engines.torch.engine import TorchEngine

    def stream(self, prompts, sampling, seeds):
        for token_id in [*self.layout.flatten(some_codes(5)), self.layout.end_of_speech]:
            yield from ((row, int(token_id)) for row in range(len(prompts)))

    monkeypatch.setattr(TorchEngine, "stream", stream)
    monkeypatch.syspath_prepend(str(ROOT))
    shutil.copytree(adapter_dir, tmp_path / "lora_model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_snippets_run(notebook, capsys):
    namespace: dict[str, Any] = {}
    snippets = [(b, compile(b.code, f"README.md, line {b.line}", "exec")) for b in blocks("python")]
    for block, program in snippets:
        if not block.compile_only:
            exec(program, namespace)
    assert "0.43 s, end_of_speech" in capsys.readouterr().out
    for name in ("hello.wav", "hello.json", "live.wav", "generated_audio/output_0.wav", "generated_audio/output_1.wav"):
        assert (notebook / name).is_file(), name
    assert namespace["model"].peft_config and namespace["tokenizer"]
    called = {s.partition("(")[0] for s in SPANS if s.endswith(")") and s[0].isupper()}
    assert called == {"OrpheusInference"}  # written out in the text, with these arguments:
    for call in (s for s in SPANS if s.startswith("OrpheusInference(")):
        names = {keyword.arg for keyword in ast.parse(call).body[0].value.keywords}
        assert names <= set(namespace["OrpheusInference"].__init__.__annotations__)


def test_data_examples_are_data_sets(tmp_path):
    examples = [("csv", block.code) for block in blocks("csv")]
    examples += [("jsonl", span) for span in SPANS if span.startswith('{"file_name"')]
    examples += [("csv", span) for span in SPANS if re.match(r"[\w-]+\|", span)]
    assert len(examples) == 3
    for number, (suffix, text) in enumerate(examples):
        folder = tmp_path / str(number)
        names = re.findall(r"clips/\w+\.\w+", text) or [f"wavs/{text.partition('|')[0]}.wav"]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(folder / name, [0.1] * 4800, 24000)
        (folder / f"metadata.{suffix}").write_text(text, encoding="utf-8")
        records = list(open_source(config.CorpusOptions(dataset=str(folder))).records())
        assert len(records) == len(names) == len(text.splitlines()) - text.startswith("file_name")
        assert all(len(record.samples()) > 4000 and record.text for record in records)
        assert {record.voice for record in records} == ({"anna"} if "source" in text else {None})


# ---- figures ----


def test_defaults_are_the_dataclasses():
    def value(options: Any, option: str) -> str:
        name = attribute(option)
        parts = [options, *(getattr(options, f.name) for f in dataclasses.fields(options))]
        return str(next(getattr(part, name) for part in parts if hasattr(part, name)))

    def attribute(option: str) -> str:
        return option.removeprefix("--").replace("-", "_")

    count = 0
    for row in (row for table in tables("option") for row in table):
        (option,) = codes_in(row["option"])
        if "default" in row:
            owner = config.SftOptions() if hasattr(config.CorpusOptions, attribute(option)) else SpeakOptions()
            wanted = {"default": value(owner, option)}
        else:
            wanted = {
                f"{machine} (`{preset}`)": value(config.filled(config.SftOptions(), machine == "GPU"), option)
                for machine, preset in (("GPU", "orpheus-3b"), ("CPU", "tiny"))
            }
        for column, text in wanted.items():
            assert row[column] == text, f"{option}: the README says {row[column]}, the default is {text}"
            count += 1
    assert count > 25
    assert f"over `--max-seq-length` ({config.SftOptions().train.max_seq_length} tokens hold about 24 s)" in TEXT


def test_the_frame_is_drawn_as_it_is():
    drawing = next(b.code for b in blocks("text") if "one frame" in b.code)
    layers = [tuple(map(int, re.findall(r"slot (\d)", line))) for line in re.findall(r"^layer.*", drawing, re.M)]
    assert tuple(layers) == tokens.LAYER_SLOTS
    rows = {m[1]: m[2].split() for m in re.finditer(r"^(slot|code|first id|last id)  +(.*)$", drawing, re.M)}
    assert rows["slot"] == [str(slot) for slot in range(tokens.FRAME_SLOTS)]
    for slot, layer in enumerate(tokens.SLOT_LAYER):
        rate, at = tokens.LAYER_RATE[layer], tokens.LAYER_SLOTS[layer].index(slot)
        assert rows["code"][slot] == f"L{layer + 1}[{rate if rate > 1 else ''}i{f'+{at}' if at else ''}]"
        ids = tokens.ORPHEUS.slot_range(slot)
        assert (rows["first id"][slot], rows["last id"][slot]) == (str(ids[0]), str(ids[-1]))
    assert f"id = {tokens.ORPHEUS.audio_start} + {tokens.CODEBOOK_SIZE} × slot + code" in drawing
    frame_s = snac.SAMPLES_PER_FRAME / recordings.SAMPLE_RATE_HZ
    figures = (
        f"{snac.SAMPLES_PER_FRAME} samples, {1000 * frame_s:.2f} ms",
        f"{tokens.FRAME_SLOTS / frame_s:.2f} tokens",
    )
    assert all(figure in TEXT for figure in figures)
    limit = config.SamplingOptions.max_new_tokens
    assert f"{limit} tokens are {limit / tokens.FRAME_SLOTS * frame_s:.1f} s" in TEXT


def test_the_special_ids_are_the_layout_s_in_the_renderer_s_order(tokenizer, layout):
    drawing = next(b.code for b in blocks("text") if b.code.startswith("prompt "))
    lines = drawing.splitlines()
    pairs = {}
    for ids, names in ((lines[0], lines[1]), (lines[2].rpartition("…")[2], lines[3].partition("(")[0])):
        numbers = [int(n) for n in re.findall(r"\d{6}", ids)]
        pairs |= dict(zip([n for n in names.split() if n != "text…"], numbers, strict=True))
    names = {token_id: name for name, token_id in dataclasses.asdict(layout).items()}
    example = Renderer(tokenizer, layout).example("Hi", some_codes(1)).input_ids
    assert list(pairs) == [names[i] for i in example if layout.slot_of(i) is None and i in names]
    pairs["pad"] = int(re.findall(r"(\d+) is pad", drawing)[0])
    assert pairs | {"audio_start": tokens.ORPHEUS.audio_start} == dataclasses.asdict(tokens.ORPHEUS)
    assert f"`<custom_token_k>` and\nhave the id {tokens.ORPHEUS.custom_start} + k" in TEXT
    assert f"`bos` is `{tokens.BOS_TOKEN}`" in TEXT and f"`end_of_text` is `{tokens.END_OF_TEXT_TOKEN}`" in TEXT


def test_languages_voices_and_tags():
    (table,) = tables("language")
    tags = {row["language"]: tuple(t.strip("<>") for t in codes_in(row["known tags"])) for row in table}
    assert {language: names for language, names in tags.items() if names} == TAGS_BY_LANGUAGE
    voices: dict[str, tuple[str, ...]] = {}
    for row in table:
        for base in (b for b in codes_in(row["base"]) if not b.endswith("…")):
            voices[base] = voices.get(base, ()) + tuple(row["its voices"].split(", "))
    assert voices == {base: config.BASE_VOICES[base] for base in voices}
    assert set(voices.values()) == set(config.BASE_VOICES.values())
    assert voices[config.HUB_BASE] == config.VOICES_ENGLISH


def test_reasons_for_leaving_a_clip_out():
    tree = ast.parse((ROOT / "orpheus" / "data" / "corpus.py").read_text(encoding="utf-8"))
    reasons = set(get_args(recordings.Reason)) - {"missing"}  # counted as unreadable
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Unfit":
            reasons |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["reason"]:
            reasons |= {node.value.value} if isinstance(node.value, ast.Constant) else set()
    (table,) = tables("reason")
    assert {code for row in table for code in codes_in(row["reason"])} == reasons


def test_fields_of_speech():
    (table,) = tables("field of `Speech`")
    listed = {code for row in table for code in codes_in(row["field of `Speech`"])}
    assert {f.name for f in dataclasses.fields(Speech)} <= listed
    assert all(name in Speech.__dataclass_fields__ or hasattr(Speech, name) for name in listed)
    timings = next(row["what it is"] for row in table if "timings" in row["field of `Speech`"])
    assert set(codes_in(timings)) == {f.name for f in dataclasses.fields(Timings)} | {"tokens_per_s"}
    reasons = next(row["what it is"] for row in table if "finish_reason" in row["field of `Speech`"])
    assert set(codes_in(reasons)) == {tokens.Stop.END_OF_SPEECH, tokens.Stop.OUT_OF_RANGE, "max_new_tokens", "guard"}


def test_versions_are_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = dict(line.split("==") for line in lines if "==" in line)
    (table,) = tables("package")
    named = {n: v for row in table for n, v in zip(row["package"].split(", "), row["version"].split(", "), strict=True)}
    assert named.pop("Python") == "3.11" and len(named) > 12 and {"unsloth", "trl", "datasets"} <= set(named)
    assert named == {name: exact[name] for name in named}


# ---- names ----


def test_files_that_are_named_exist(adapter_dir):
    ours = re.compile(
        r"(orpheus|tests|data|benchmarks|\.ci)/[\w./-]+|[\w-]+\.(py|toml|md)|(requirements|constraints)[\w-]*\.txt|LICENSE"
    )
    named = {span for span in SPANS if ours.fullmatch(span)}
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []
    written = {s for s in SPANS if re.match(r"(lora_model|generated_audio|\.cache)/.+", s)}
    (table,) = tables("file")
    listed = {code.rstrip("/") for row in table for code in codes_in(row["file"])}
    assert {p.name for p in adapter_dir.iterdir()} <= listed
    for name in {Path(s).name for s in written} | listed - {p.name for p in adapter_dir.iterdir()}:
        stem = re.escape(re.split(r"\d", name)[0])
        assert re.search(rf"(?<!\w){stem}", SOURCE_TEXT), f"nothing writes {name}"


def test_the_module_map_is_complete():
    (table,) = tables("module")
    listed = [code for row in table for code in codes_in(row["module"])]
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "orpheus").rglob("*.py") if p.name != "__init__.py"}
    assert set(listed) == modules and len(listed) == len(modules)


def test_links_resolve():
    headings = re.findall(r"^#+ (.*)$", PROSE, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(([^)\s]+)\)", PROSE)
    assert len(links) > 10
    for link in links:
        if not link.startswith("https://"):
            file, _, anchor = link.partition("#")
            assert (ROOT / file).exists() if file else anchor in anchors, link


# ---- error texts ----

WILD = None  # stands for the value of a placeholder


def templates() -> Iterator[list[str | None]]:
    """Every string and f-string of the programs as a list of characters, with WILD for each placeholder."""
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else WILD for v in node.values]
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                parts = [node.value]
            else:
                continue
            yield [c for part in parts for c in ([WILD] if part is WILD else re.sub(r"\s+", " ", part))]


def literal_match(quote: str, template: list[str | None], whole: bool) -> int:
    """How many characters of `quote` are the template's own words; 0 if it does not match (or not to the end)."""
    reached = {0: 0}  # position in the template -> most literal characters so far
    for char in quote:
        after: dict[int, int] = {}
        for at, score in reached.items():
            steps = [(at, 0)] if at and template[at - 1] is WILD else []  # one more character of a value
            if at < len(template):
                steps += [(at + 1, int(template[at] is not WILD))] if template[at] in (WILD, char) else []
            for to, gain in steps:
                after[to] = max(after.get(to, -1), score + gain)
        reached = after
    return max((s for at, s in reached.items() if not whole or at == len(template)), default=0)


ERRORS = re.findall(r"`error: ([^`]+)`", section("Troubleshooting"))


@pytest.mark.parametrize("quote", ERRORS, ids=lambda quote: quote[:40])
def test_quoted_errors_are_those_of_the_code(quote):
    text, cut, _ = quote.partition("…")
    words = max(literal_match(text.strip(), template, whole=not cut) for template in templates())
    assert words >= max(20, 0.4 * len(text)), f"only {words} of {len(text)} characters are found in one message"


def test_the_important_errors_are_explained():
    assert len(ERRORS) >= 15
    asked = ["no adapter", "can't be had from the hub", "can't be had: ", "clips of", "unknown voice", "context of",
             "no audio", "unfinished training", "does not fit", "Unsloth needs"]  # fmt: skip
    assert [words for words in asked if not any(words in error for error in ERRORS)] == []
    assert all(o in section("Troubleshooting") for o in ("operator torchvision::nms does not", "CUDA out of memory"))
