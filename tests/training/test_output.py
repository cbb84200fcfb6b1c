"""The folder of a training: one at a time, and a finished adapter is never replaced unasked."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orpheus.config import CorpusOptions, SftOptions, as_dict, filled
from orpheus.errors import UserError
from orpheus.format.tokens import ORPHEUS
from orpheus.model.provenance import Provenance
from orpheus.training.checkpoints import alone_in, is_finished, may_be_damage

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from orpheus.training.checkpoints import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture()
def finished(tmp_path):
    """A folder with a finished adapter, and the config that made it."""
    config = as_dict(filled(SftOptions(), has_gpu=False))
    folder = tmp_path / "voice"
    folder.mkdir()
    (folder / "adapter_model.safetensors").touch()
    Provenance(base="b", codec="c", layout=ORPHEUS, config=config).save(folder)
    return folder, config


def test_a_finished_adapter_is_not_replaced_unasked(finished):
    folder, config = finished
    with pytest.raises(UserError, match=r"holds a finished adapter.*--output-dir .*voice_2.*--overwrite"):
        is_finished(folder, config, resume=False, overwrite=False)
    assert not is_finished(folder, config, resume=False, overwrite=True)
    assert not is_finished(folder / "new", config, resume=False, overwrite=False)
    (folder.parent / "voice_2").mkdir()
    with pytest.raises(UserError, match="voice_3"):
        is_finished(folder, config, resume=False, overwrite=False)


def test_resuming_what_is_done_trains_nothing(finished):
    """`make demo` a second time."""
    folder, config = finished
    assert is_finished(folder, config, resume=True, overwrite=False)
    other = as_dict(filled(replace(SftOptions(), corpus=CorpusOptions(dataset="mine")), has_gpu=False))
    with pytest.raises(UserError, match="holds a finished adapter"):
        is_finished(folder, other, resume=True, overwrite=False)
    whole = folder / "checkpoints" / "checkpoint-3"
    whole.mkdir(parents=True)
    (whole / "trainer_state.json").touch()  # of a training that was begun with --overwrite
    assert not is_finished(folder, other, resume=True, overwrite=False)


def test_one_training_a_folder(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE)  # fmt: skip
    assert holder.stdout.readline() == b"held\n"
    says = rf"another training works in .*process {holder.pid}, since \d{{4}}-.*--output-dir"
    with pytest.raises(UserError, match=says), alone_in(tmp_path):
        pass
    with alone_in(tmp_path / "other"):
        pass
    holder.kill()
    holder.wait()
    assert (tmp_path / ".training.lock").exists()  # left by the dead process: taken over
    with alone_in(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".training.lock").read_text()
    holder.stdin.close(), holder.stdout.close()
    assert not list(tmp_path.glob(".*"))


def test_of_several_processes_the_first_holds_the_folder(tmp_path, monkeypatch):
    with alone_in(tmp_path):
        monkeypatch.setenv("RANK", "1")
        with alone_in(tmp_path):
            pass


def test_a_checkpoint_is_not_blamed_for_full_memory_or_a_full_disk():
    """Else the advice would be to delete a good one."""
    import errno

    import torch

    full = [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), torch.OutOfMemoryError(), UserError("x")]
    assert not any(may_be_damage(error) for error in full)
    assert all(
        may_be_damage(error) for error in (OSError(errno.ENOENT, "gone"), RuntimeError("bad archive"), KeyError())
    )
