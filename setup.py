"""The one step that pyproject.toml can't say: the embedded voice of data/ travels inside the package."""

import shutil
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EMBEDDED = [path for path in Path("data").iterdir() if path.is_dir() and path.name != "make"]


class WithVoice(build_py):
    """Copies it to orpheus/embedded/, where orpheus/config.py looks first. An editable install reads data/ itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for path in EMBEDDED:
                shutil.copytree(path, Path(self.build_lib, "orpheus", "embedded", path.name))


# Built in a folder of its own: what an earlier build left in build/ would get into the wheel.
with tempfile.TemporaryDirectory() as folder:
    setup(cmdclass={"build_py": WithVoice}, options={"build": {"build_base": folder}})
