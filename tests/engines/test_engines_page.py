"""What docs/engines.md says of servers and limits is the code's."""

from __future__ import annotations

from pathlib import Path

import yaml

from orpheus.cli import parse
from orpheus.engines.remote import engine as remote_engine
from orpheus.engines.remote.servers import KINDS
from orpheus.engines.tensorrt import engine as trtllm
from orpheus.engines.tensorrt.smoke import SmokeOptions
from orpheus.engines.vllm import engine as vllm_engine
from tests.support.pages import DOCS, ROOT

TEXT = DOCS["engines"].text


def test_it_names_every_kind_of_server_and_the_files_for_tensorrt():
    assert f"`{trtllm.BUILD}`" in TEXT and f"/{trtllm.SERVE}" in TEXT
    for kind in KINDS:
        assert kind.name in TEXT, kind.name


def test_the_tensorrt_smoke_s_options():
    [line] = [c for c in DOCS["engines"].commands() if "orpheus.engines.tensorrt.smoke" in c]
    options = parse(SmokeOptions, line[3:])
    assert parse(SmokeOptions, []) == SmokeOptions()
    assert (options.model, options.voice) == (Path("exported/merged"), "tara")


def test_its_limits_are_the_code_s():
    assert f"At most {remote_engine.CONNECT_S:g} s for a connection" in TEXT
    assert all(str(status) in TEXT for status in remote_engine.BUSY) and len(remote_engine.RETRY_AFTER_S) == 2
    assert f"`{remote_engine.API_KEY}`" in TEXT
    assert f"up to rank {vllm_engine.LORA_RANKS[-1]}" in TEXT


def test_servers_listen_on_this_machine_only():
    for command in DOCS["engines"].commands():
        if "8000" in command:
            assert command[command.index("--host") + 1] == "127.0.0.1", command
    service = yaml.safe_load((ROOT / "docker" / "trtllm" / "compose.yaml").read_text())["services"]["trtllm"]
    assert service["ports"] == ["127.0.0.1:8000:8000"] and service["image"] == trtllm.IMAGE
    assert trtllm.SERVE in service["command"]
