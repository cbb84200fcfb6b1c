"""docs/serve.md and the README's Serve section can't rot: snippets run, tables are the code's."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import subprocess

from orpheus.audio.encoders import FORMS
from orpheus.config import ReadingOptions
from orpheus.serve.admission import Admission
from orpheus.serve.app import create_app
from orpheus.serve.command import ServeOptions
from orpheus.serve.counts import Counts
from orpheus.serve.options import ServerOptions
from orpheus.serve.problems import MEANINGS
from orpheus.serve.requests import SpeechRequest
from tests.support import pages
from tests.support.pages import DOCS, ROOT, codes_in
from tests.support.speakers import Speaker, running

TEXT = DOCS["serve"].text
README = pages.README.section("Serve")
SOURCES = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "orpheus" / "serve").glob("*.py"))


def table(first: str) -> list[list[str]]:
    """The cells of the rows of the table whose first heading is `first`."""
    return [list(row.values()) for row in pages.table(DOCS["serve"], first)]


def test_the_parameters_are_all_there_with_their_defaults():
    rows = {codes_in(name)[0]: default for name, default, _ in table("parameter")}
    fields = {f.name: f.default for f in dataclasses.fields(SpeechRequest)}
    assert list(rows) == list(fields)
    for name, default in fields.items():
        said = {"voice": "the default voice", "seed": "fresh"}.get(name) or (
            "required" if default is dataclasses.MISSING else json.dumps(default).strip('"')
        )
        assert rows[name] == said.removesuffix(".0"), name


def test_formats_codes_and_statuses():
    assert [(codes_in(name)[0], codes_in(kind)[0]) for name, kind, *_ in table("format")] == [
        (name, form.media_type) for name, form in FORMS.items()
    ]
    rows = table("status")
    listed = {int(status) for row in rows for status in row[0].split(", ")}
    assert listed == set(MEANINGS)
    named = {code for row in rows for code in codes_in(row[1])}
    used = set(re.findall(r'"((?:invalid|missing|unknown|unsupported|string|incomplete|model_not|no_speech|rate_limit|'
                          r'internal|stopping|timeout|body_too)\w*)"', SOURCES))  # fmt: skip
    assert named == used - {"invalid_request_error", "rate_limit_error", "missing", "string"}


def test_options_and_figures():
    defaults = {f.name: f.default for part in (ServeOptions, ServerOptions) for f in dataclasses.fields(part)}
    for options, said, _ in table("option"):
        for option, value in zip(codes_in(options), said.split(", "), strict=True):
            default = defaults.get(option.removeprefix("--").replace("-", "_"), dataclasses.MISSING)
            if isinstance(default, (int, float, str)):
                assert value == f"{default:g}" if isinstance(default, float) else value == str(default), option
            else:
                assert default in (None, ()) or (option, ServeOptions().reading) == ("--guard", ReadingOptions(True))
    assert {codes_in(o)[i] for o, *_ in table("option") for i in range(len(codes_in(o)))} >= {
        f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(ServerOptions)
    }
    metrics = set(re.findall(r"^# HELP (\w+)", Counts(Admission(1, 1)).text()[0].decode(), re.M))
    named = {name for name in codes_in(TEXT.split("## Figures")[1]) if name.startswith("orpheus_")}
    assert named == {name for name in metrics if "created" not in name}
    paths = create_app(Speaker()).openapi()["paths"]
    assert {c.removeprefix("GET ") for row in table("route") for c in codes_in(row[0])} | {"/v1/audio/speech"} == {
        *paths, "/", "/openapi.json"}  # fmt: skip


def test_the_readme_s_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with running(create_app(Speaker(voices=("tara", "leah")))) as url:
        (snippet,) = re.findall(r"^```python\n(.*?)^```$", README, re.M | re.S)
        exec(compile(snippet.replace("http://127.0.0.1:8000", url), "README.md", "exec"), {})
        assert (tmp_path / "more.wav").stat().st_size > 10_000
        (curl,) = [line for line in README.splitlines() if line.startswith("curl ")]
        done = subprocess.run(shlex.split(curl.replace("http://127.0.0.1:8000", url)), capture_output=True)
        assert done.returncode == 0 and (tmp_path / "hello.mp3").read_bytes()[:3] == b"ID3"
