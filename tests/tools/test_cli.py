"""The command line's own words."""

from __future__ import annotations

import pytest

from orpheus.cli import parse
from orpheus.config import VoiceOptions


@pytest.mark.parametrize("args", [["--no-adapter"], ["--no_adapter"], ["--adapter", "none"], ["--adapter", "NONE"],
                                  ["--adapter=none"], ["--adapter", "None"]])  # fmt: skip
def test_no_adapter_in_every_spelling(args):
    assert parse(VoiceOptions, args).adapter is None
    assert parse(VoiceOptions, ["--adapter", "none_such"]).adapter == "none_such"
