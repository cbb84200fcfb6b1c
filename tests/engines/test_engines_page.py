"""docs/engines.md can't rot: what it names exists, its commands parse, its limits are the code's."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import yaml

from orpheus.cli import parse
from orpheus.engines.remote import engine as remote_engine
from orpheus.engines.remote.servers import KINDS
from orpheus.engines.tensorrt import engine as trtllm
from orpheus.engines.tensorrt.smoke import SmokeOptions
from orpheus.engines.vllm import engine as vllm_engine

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_what_it_names_exists():
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL))
    paths = [s for s in spans if re.fullmatch(r"[\w./-]+\.(py|md|yaml|txt)", s) and "/" in s]
    assert len(paths) >= 3 and all((ROOT / path).is_file() for path in paths), paths
    assert f"`{trtllm.BUILD}`" in TEXT and f"/{trtllm.SERVE}" in TEXT
    for kind in KINDS:
        assert kind.name in TEXT, kind.name


def test_its_python_imports_what_there_is():
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_its_own_command_parses():
    [line] = [line for block in blocks("bash") for line in block.splitlines() if "tensorrt.smoke" in line]
    options = parse(SmokeOptions, shlex.split(line)[3:])
    assert parse(SmokeOptions, []) == SmokeOptions()
    assert (options.model, options.voice) == (Path("exported/merged"), "tara")


def test_its_limits_are_the_code_s():
    assert f"At most {remote_engine.CONNECT_S:g} s for a connection" in TEXT
    assert all(str(status) in TEXT for status in remote_engine.BUSY) and len(remote_engine.RETRY_AFTER_S) == 2
    assert f"`{remote_engine.API_KEY}`" in TEXT
    assert f"up to rank {vllm_engine.LORA_RANKS[-1]}" in TEXT


def test_servers_listen_on_this_machine_only():
    for line in "".join(blocks("bash")).replace("\\\n", " ").splitlines():
        if "--port 8000" in line:
            assert "--host 127.0.0.1" in line, line
    service = yaml.safe_load((ROOT / "docker" / "trtllm" / "compose.yaml").read_text())["services"]["trtllm"]
    assert service["ports"] == ["127.0.0.1:8000:8000"] and service["image"] == trtllm.IMAGE
    assert trtllm.SERVE in service["command"]
