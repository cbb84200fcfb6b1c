"""Names of spoken files: two programs with one folder never take the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from orpheus.errors import UserError
from orpheus.speak.names import output_paths, reserved_paths

ROOT = Path(__file__).resolve().parents[2]
CLAIM = """
import sys, time
from pathlib import Path
from orpheus.speak.names import reserved_paths
for _ in range(20):
    with reserved_paths(Path(sys.argv[1]), 3, overwrite=False) as paths:
        time.sleep(0.002)
        for path in paths:
            with open(path, "x") as file:
                file.write(sys.argv[2])
"""


def test_programs_that_write_at_once_lose_nothing(tmp_path):
    programs = [subprocess.Popen([sys.executable, "-c", CLAIM, str(tmp_path), str(i)], cwd=ROOT) for i in range(4)]
    assert [program.wait(60) for program in programs] == [0, 0, 0, 0]
    written = [path.read_text() for path in tmp_path.glob("output_*.wav")]
    assert [written.count(str(i)) for i in range(4)] == [60] * 4
    assert not list(tmp_path.glob(".*"))


def test_two_voices_in_one_program(tmp_path):
    with reserved_paths(tmp_path, 2, overwrite=False) as first, reserved_paths(tmp_path, 2, overwrite=False) as second:
        assert [p.name for p in first + second] == [f"output_{i}.wav" for i in range(4)]
        first[1].touch()
    assert [p.name for p in output_paths(tmp_path, 1, overwrite=False)] == ["output_2.wav"]
    with reserved_paths(tmp_path, 1, overwrite=True) as again:
        assert again[0].name == "output_0.wav" and not list(tmp_path.glob(".*"))


def test_a_killed_programs_names_are_free_again(tmp_path):
    dead = subprocess.run([sys.executable, "-c", CLAIM.replace("time.sleep(0.002)", "import os; os._exit(9)"),
                           str(tmp_path), "x"], cwd=ROOT)  # fmt: skip
    assert dead.returncode == 9 and len(list(tmp_path.glob(".output_*.taken"))) == 3
    with reserved_paths(tmp_path, 1, overwrite=False) as paths:
        assert paths[0].name == "output_0.wav"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't write to"), reserved_paths(tmp_path / "file" / "x", 1, overwrite=False):
        pass
