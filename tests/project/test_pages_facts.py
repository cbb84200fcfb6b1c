"""What README.md and docs/ say of the code is true: defaults, drawings, tables, versions, error texts."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from orpheus import config
from orpheus.audio import recordings
from orpheus.codec import snac as codec
from orpheus.config import CorpusOptions, SftOptions, filled
from orpheus.format import tokens
from orpheus.format.prompt import TAGS_BY_LANGUAGE, Renderer
from orpheus.format.tokens import ORPHEUS
from orpheus.speak.speech import Speech, Timings
from orpheus.tools.speak import SpeakOptions
from tests.support.pages import DOCS, PAGES, README, ROOT, codes_in, table
from tests.support.voices import some_codes

SOURCES = [*ROOT.glob("*.py"), *sorted((ROOT / "orpheus").rglob("*.py"))]
INTERNALS, DATA, SPEAKING = DOCS["internals"], DOCS["data"], DOCS["speaking"]


def test_defaults_are_the_dataclasses():
    """A default that is None stands there in words, a switch as on or off."""

    def value(options: Any, option: str) -> Any:
        name = option.removeprefix("--").replace("-", "_")
        parts = [options, *(getattr(options, f.name) for f in dataclasses.fields(options))]
        return next(getattr(part, name) for part in parts if hasattr(part, name))

    def agrees(text: str, default: Any) -> bool:
        if default is None:
            return not re.search(r"\d", text)
        return text in ({str(default), "on" if default else "off"} if isinstance(default, bool) else {str(default)})

    count = 0
    for row in (row for page in (README, DATA, SPEAKING, DOCS["training"]) for t in page.tables("option") for row in t):
        (option,) = codes_in(row["option"])
        if "default" in row:
            owner = SftOptions() if hasattr(CorpusOptions, option[2:].replace("-", "_")) else SpeakOptions()
            wanted = {"default": value(owner, option)}
        else:
            wanted = {
                f"{machine} (`{preset}`)": value(filled(SftOptions(), machine == "GPU"), option)
                for machine, preset in (("GPU", "orpheus-3b"), ("CPU", "tiny"))
            }
        for column, default in wanted.items():
            assert agrees(row[column], default), f"{option}: a page says {row[column]}, the default is {default}"
            count += 1
    assert count > 40
    assert f"over `--max-seq-length` ({SftOptions().train.max_seq_length} tokens hold about 24 s)" in DATA.text


def test_the_frame_is_drawn_as_it_is():
    drawing = next(b.code for b in INTERNALS.blocks("text") if "one frame" in b.code)
    layers = [tuple(map(int, re.findall(r"slot (\d)", line))) for line in re.findall(r"^layer.*", drawing, re.M)]
    assert tuple(layers) == tokens.LAYER_SLOTS
    rows = {m[1]: m[2].split() for m in re.finditer(r"^(slot|code|first id|last id)  +(.*)$", drawing, re.M)}
    assert rows["slot"] == [str(slot) for slot in range(tokens.FRAME_SLOTS)]
    for slot, layer in enumerate(tokens.SLOT_LAYER):
        rate, at = tokens.LAYER_RATE[layer], tokens.LAYER_SLOTS[layer].index(slot)
        assert rows["code"][slot] == f"L{layer + 1}[{rate if rate > 1 else ''}i{f'+{at}' if at else ''}]"
        ids = ORPHEUS.slot_range(slot)
        assert (rows["first id"][slot], rows["last id"][slot]) == (str(ids[0]), str(ids[-1]))
    assert f"id = {ORPHEUS.audio_start} + {tokens.CODEBOOK_SIZE} × slot + code" in drawing
    frame_s = codec.SAMPLES_PER_FRAME / recordings.SAMPLE_RATE_HZ
    figures = (
        f"{codec.SAMPLES_PER_FRAME} samples or {1000 * frame_s:.2f} ms",
        f"{tokens.FRAME_SLOTS / frame_s:.2f} tokens",
    )
    assert all(figure in INTERNALS.text for figure in figures)
    limit = config.SamplingOptions.max_new_tokens
    assert f"{limit} tokens are {limit / tokens.FRAME_SLOTS * frame_s:.1f} s" in README.text


def test_the_special_ids_are_the_layout_s_in_the_renderer_s_order(tokenizer, layout):
    drawing = next(b.code for b in INTERNALS.blocks("text") if b.code.startswith("prompt "))
    lines = drawing.splitlines()
    pairs = {}
    for ids, names in ((lines[0], lines[1]), (lines[2].rpartition("…")[2], lines[3].partition("(")[0])):
        numbers = [int(n) for n in re.findall(r"\d{6}", ids)]
        pairs |= dict(zip([n for n in names.split() if n != "text…"], numbers, strict=True))
    names = {token_id: name for name, token_id in dataclasses.asdict(layout).items()}
    example = Renderer(tokenizer, layout).example("Hi", some_codes(1)).input_ids
    assert list(pairs) == [names[i] for i in example if layout.slot_of(i) is None and i in names]
    pairs["pad"] = int(re.findall(r"(\d+) is pad", drawing)[0])
    assert pairs | {"audio_start": ORPHEUS.audio_start} == dataclasses.asdict(ORPHEUS)
    assert f"`<custom_token_k>` and\nhave the id {ORPHEUS.custom_start} + k" in INTERNALS.text
    assert f"`bos` is `{tokens.BOS_TOKEN}`" in INTERNALS.text
    assert f"`end_of_text` is `{tokens.END_OF_TEXT_TOKEN}`" in INTERNALS.text


def test_languages_voices_and_tags():
    rows = table(DATA, "language")
    tags = {row["language"]: tuple(t.strip("<>") for t in codes_in(row["known tags"])) for row in rows}
    assert {language: names for language, names in tags.items() if names} == TAGS_BY_LANGUAGE
    voices: dict[str, tuple[str, ...]] = {}
    for row in rows:
        for base in (b for b in codes_in(row["base"]) if not b.endswith("…")):
            voices[base] = voices.get(base, ()) + tuple(row["its voices"].split(", "))
    assert voices == {base: config.BASE_VOICES[base] for base in voices}
    assert set(voices.values()) == set(config.BASE_VOICES.values())
    assert voices[config.HUB_BASE] == config.VOICES_ENGLISH


def test_reasons_for_leaving_a_clip_out():
    tree = ast.parse((ROOT / "orpheus" / "data" / "clips.py").read_text(encoding="utf-8"))
    reasons = set(get_args(recordings.Reason)) - {"missing"}  # counted as unreadable
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Unfit":
            reasons |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
        if isinstance(node, ast.Assign) and [getattr(t, "id", "") for t in node.targets] == ["reason"]:
            reasons |= {node.value.value} if isinstance(node.value, ast.Constant) else set()
    assert {code for row in table(DATA, "reason") for code in codes_in(row["reason"])} == reasons


def test_fields_of_speech():
    head = "field of `Speech`"
    rows = {tuple(codes_in(row[head])): row["what it is"] for row in table(SPEAKING, head)}
    listed = {name for names in rows for name in names}
    assert {f.name for f in dataclasses.fields(Speech)} <= listed
    assert all(name in Speech.__dataclass_fields__ or hasattr(Speech, name) for name in listed)
    timings = next(text for names, text in rows.items() if "timings" in names)
    assert set(codes_in(timings)) == {f.name for f in dataclasses.fields(Timings)} | {"tokens_per_s"}
    reasons = next(text for names, text in rows.items() if "finish_reason" in names)
    assert set(codes_in(reasons)) == {tokens.Stop.END_OF_SPEECH, tokens.Stop.OUT_OF_RANGE, "max_new_tokens", "guard"}


def test_versions_are_the_constraints():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = dict(line.split("==") for line in lines if "==" in line)
    rows = table(DOCS["measured"], "package")
    named = {n: v for row in rows for n, v in zip(row["package"].split(", "), row["version"].split(", "), strict=True)}
    assert named.pop("Python") == "3.11" and len(named) > 12 and {"unsloth", "trl", "datasets"} <= set(named)
    assert named == {name: exact[name] for name in named}


def test_the_map_has_every_room():
    listed = [code for row in table(README, "room") for code in codes_in(row["room"])]
    assert sorted(listed) == sorted(f"orpheus/{p.parent.name}/" for p in (ROOT / "orpheus").glob("*/__init__.py"))


def test_what_a_training_writes(adapter_dir):
    source = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)
    written = {s for page in PAGES for s in page.spans if re.match(r"(lora_model|generated_audio|\.cache)/.+", s)}
    listed = {code.rstrip("/") for row in table(DOCS["training"], "file") for code in codes_in(row["file"])}
    assert {p.name for p in adapter_dir.iterdir()} <= listed
    for name in {Path(s).name for s in written} | listed - {p.name for p in adapter_dir.iterdir()}:
        stem = re.escape(re.split(r"\d", name)[0])
        assert re.search(rf"(?<!\w){stem}", source), f"nothing writes {name}"


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


COMMONEST, OTHERS = README.section("The five commonest errors"), DOCS["troubleshooting"].text
ERRORS = re.findall(r"`error: ([^`]+)`", COMMONEST + OTHERS)


@pytest.fixture(scope="module")
def messages() -> list[list[str | None]]:
    return list(templates())


@pytest.mark.parametrize("quote", ERRORS, ids=lambda quote: quote[:40])
def test_quoted_errors_are_those_of_the_code(quote, messages):
    text, cut, _ = quote.partition("…")
    words = max(literal_match(text.strip(), template, whole=not cut) for template in messages)
    assert words >= max(20, 0.4 * len(text)), f"only {words} of {len(text)} characters are found in one message"


def test_the_important_errors_are_explained():
    assert len(ERRORS) >= 15 and COMMONEST.count("\n- ") == 5
    asked = ["no adapter", "can't be had from the hub", "can't be had: ", "clips of", "unknown voice", "context of",
             "no audio", "unfinished training", "does not fit", "Unsloth needs"]  # fmt: skip
    assert [words for words in asked if not any(words in error for error in ERRORS)] == []
    assert "CUDA out of memory" in COMMONEST and "operator torchvision::nms does not" in OTHERS
