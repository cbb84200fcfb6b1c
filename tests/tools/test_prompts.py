"""Texts from arguments, files and standard input."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orpheus.config import DEFAULT_PROMPTS
from orpheus.errors import UserError
from orpheus.tools.prompts import read_prompts

ROOT = Path(__file__).resolve().parents[2]
READ = "from orpheus.tools.prompts import read_prompts as r; print(r({given}, None))"
SAMPLES = str(list(DEFAULT_PROMPTS))


@pytest.mark.parametrize(("content", "texts"), [
    (b"\xef\xbb\xbftara: Hi.\r\nHo.\r\n", ["tara: Hi.", "Ho."]),
    (b"One.\rTwo.\n\n \nThree.", ["One.", "Two.", "Three."]),
    ("a\u2028b\x0bc\x0cd\x1ce\x85f".encode(), ["a\u2028b\x0bc\x0cd\x1ce\x85f"]),
])  # fmt: skip
def test_lines_of_a_file(content, texts, tmp_path):
    (tmp_path / "lines.txt").write_bytes(content)
    assert read_prompts((), tmp_path / "lines.txt") == texts
    assert read_prompts(("first",), tmp_path / "lines.txt") == ["first", *texts]


@pytest.mark.parametrize(("content", "said"), [
    ("Über".encode("latin-1"), "byte 0xdc in line 1 is not UTF-8"), ("Hi.".encode("utf-16"), "it is UTF-16"),
    (b"\n \n", "every line is empty"),
])  # fmt: skip
def test_a_file_that_can_t_be_read_is_one_line(content, said, tmp_path):
    (tmp_path / "lines.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_prompts((), tmp_path / "lines.txt")


def reading(stdin, given: tuple[str, ...] = ()) -> str:
    code = READ.format(given=given)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdin=stdin, capture_output=True, text=True,
                          timeout=30)  # fmt: skip
    return done.stdout.strip() or done.stderr.splitlines()[-1]


def piped(data: bytes, *given: str) -> str:
    """What is read of a pipe that holds `data` and is closed then."""
    out, into = os.pipe()
    os.write(into, data)
    os.close(into)
    try:
        return reading(out, given)
    finally:
        os.close(out)


def test_what_is_piped_in_is_read():
    assert piped(b"\xef\xbb\xbfHi.\r\nHo.\n") == "['Hi.', 'Ho.']" == piped(b"Hi.\nHo.\n", "-")
    assert piped(b"Hi.\n", "first") == "['first']"
    assert "every line is empty" in piped(b"\n\n")
    assert piped(b"") == SAMPLES


def test_a_file_as_standard_input_is_read(tmp_path):
    (tmp_path / "lines.txt").write_text("Hi.\n")
    with open(tmp_path / "lines.txt", "rb") as file:
        assert reading(file) == "['Hi.']"


def test_it_never_hangs_where_nothing_comes():
    """As cron, make and servers start programs: with /dev/null, a closed standard input, a pipe that stays open."""
    assert reading(subprocess.DEVNULL) == SAMPLES
    closed = subprocess.run(f"{sys.executable} -c '{READ.format(given=())}' <&-", shell=True, cwd=ROOT, text=True,
                            capture_output=True, timeout=30)  # fmt: skip
    assert closed.stdout.strip() == SAMPLES, closed.stderr
    out, into = os.pipe()
    started = time.monotonic()
    assert reading(out) == SAMPLES
    assert time.monotonic() - started < 20
    os.close(into)
    os.close(out)


def test_text_without_an_end_is_one_line(monkeypatch):
    monkeypatch.setattr("orpheus.tools.prompts.STALL_S", 0.1)
    out, into = os.pipe()
    os.write(into, b"Hi.\n")
    with open(out) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UserError, match="does not end: give '-'"):
            read_prompts((), None)
    os.close(into)
