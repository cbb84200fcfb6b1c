"""notebooks/: the one for a CPU runs from its first cell to its last, the one for a GPU says the same."""

from __future__ import annotations

import ast
import os
import re
from typing import Any

import nbformat
import pytest

from orpheus.cli import from_keywords
from orpheus.config import SftOptions
from tests.support.pages import ROOT

QUICK, COLAB = (nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4) for name in ("quickstart", "colab"))
BOTH = pytest.mark.parametrize("notebook", [QUICK, COLAB], ids=["quickstart", "colab"])


def code(notebook: Any) -> list[str]:
    """The cells of Python."""
    return [c.source for c in notebook.cells if c.cell_type == "code" and not c.source.startswith("%%bash")]


def options(notebook: Any) -> dict[str, Any]:
    """What OPTIONS holds."""
    [line] = [source for source in code(notebook) if source.startswith("OPTIONS = ")]
    return ast.literal_eval(line.removeprefix("OPTIONS = "))


@BOTH
def test_it_is_valid_and_its_options_exist(notebook):
    nbformat.validate(notebook)
    for source in code(notebook):
        compile(source, "a cell", "exec")
    made = from_keywords(SftOptions, options(notebook))
    assert made.train.push_to_hub is False
    [call] = [ast.parse(source).body[0].value for source in code(notebook) if "train(**OPTIONS" in source]
    from_keywords(SftOptions, {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg})


def test_both_have_the_same_cells_after_the_options():
    assert [s for s in code(QUICK) if "OPTIONS = " not in s] == [s for s in code(COLAB) if "OPTIONS = " not in s]
    assert options(QUICK)["preset"] == "tiny" and options(COLAB)["preset"] == "orpheus-3b"


def test_colab_installs_with_the_tested_versions():
    [install] = [c.source for c in COLAB.cells if c.source.startswith("%%bash")]
    folder = re.search(r'^git clone "<address of this repository>" (\w+)$', install, re.MULTILINE)[1]
    assert f'pip install --quiet "./{folder}[gpu,serve]" -c {folder}/constraints.txt' in install
    assert not (ROOT / folder).exists() and folder not in ("orpheus", "data")  # no folder of that name is imported


def test_the_quickstart_is_kept_as_it_ran():
    cells = [c for c in QUICK.cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == [*range(1, len(cells) + 1)]
    shown = [output for c in cells for output in c.outputs]
    assert {o.output_type for o in shown} == {"stream", "display_data", "execute_result"}  # no error
    assert any("<audio" in o.get("data", {}).get("text/html", "") for o in shown)
    text = (ROOT / "notebooks" / "quickstart.ipynb").read_text(encoding="utf-8")
    assert len(text) < 1_500_000 and not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.mark.slow
def test_the_quickstart_runs(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    fresh = nbformat.from_dict(QUICK)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(fresh, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    assert {"lora_model", "hello.wav", "hello.json"} <= {path.name for path in tmp_path.iterdir()}
    shown = [output for cell in fresh.cells for output in cell.get("outputs", [])]
    assert any("image/png" in o.get("data", {}) for o in shown) and "36 steps" in str(shown)
