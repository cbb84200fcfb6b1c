"""README.md and docs/*.md as data: blocks, commands, tables, links, sentences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Block(NamedTuple):
    line: int
    language: str
    code: str
    compile_only: bool  # the line above it is `<!-- test: compile only, REASON -->`


@dataclass(frozen=True)
class Page:
    """One Markdown file; `name` is its path from the repository's root."""

    name: str

    @cached_property
    def text(self) -> str:
        return (ROOT / self.name).read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @cached_property
    def spans(self) -> list[str]:
        return re.findall(r"`([^`\n]+)`", self.prose)

    @cached_property
    def links(self) -> list[str]:
        return re.findall(r"\]\(([^)\s]+)\)", self.prose)

    @cached_property
    def headings(self) -> list[str]:
        return re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)

    @cached_property
    def anchors(self) -> set[str]:
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in self.headings}

    def section(self, title: str) -> str:
        return self.text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]

    def blocks(self, *languages: str) -> list[Block]:
        pattern = r"^(?:(<!-- test: compile only, [^\n]+ -->)\n)?```(\w*)\n(.*?)^```$"
        found = re.finditer(pattern, self.text, re.MULTILINE | re.DOTALL)
        every = [Block(self.text.count("\n", 0, m.start(3)), m[2], m[3], bool(m[1])) for m in found]
        assert 2 * len(every) == len(re.findall(r"^ *```", self.text, re.MULTILINE)), f"{self.name}: an unseen block"
        return [block for block in every if block.language in languages]

    def tables(self, first: str) -> Iterator[list[dict[str, str]]]:
        """The tables whose first heading is `first`, each as its rows by heading."""
        for lines in re.findall(r"(?:^\|.*\|\n)+", self.text, re.MULTILINE):
            head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines())
            assert all(len(row) == len(head) for row in rows), lines
            if head[0] == first:
                yield [dict(zip(head, row, strict=True)) for row in rows]

    def commands(self) -> Iterator[list[str]]:
        """Every command of the shell blocks, as words."""
        for block in self.blocks("bash"):
            for line in re.sub(r"\\\n\s*", "", block.code).splitlines():
                lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
                lexer.whitespace_split = True
                command: list[str] = []
                for word in [*lexer, "&&"]:
                    if word not in ("|", "&&", ";"):
                        command.append(word)
                    elif command:
                        yield command
                        command = []

    def sentences(self) -> Iterator[str]:
        """What is said, sentence by sentence; a cell of a table is at least one."""
        for paragraph in re.split(r"\n\s*\n|\n(?=[-|#])", self.prose):
            for part in paragraph.split("|") if paragraph.startswith("|") else [paragraph]:
                yield from re.split(r"(?<=[.!?:])\s+", " ".join(part.split()).removeprefix("- "))


README = Page("README.md")
DOCS = {path.stem: Page(f"docs/{path.name}") for path in sorted((ROOT / "docs").glob("*.md"))}
PAGES = [README, *DOCS.values()]
BESIDE = [Page(f"{folder}/README.md") for folder in ("data", "generated_audio")]


def table(page: Page, first: str) -> list[dict[str, str]]:
    """The one table of a page whose first heading is `first`."""
    (rows,) = page.tables(first)
    return rows


def codes_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)
