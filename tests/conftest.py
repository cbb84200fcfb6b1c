"""Shared fixtures: tiny seeded models. No test may use the network."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer in the published order that adds BOS itself, like Llama 3's."""
    from tests.tiny import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def layout(tokenizer):
    """The token layout of the tiny tokenizer."""
    from orpheus.tokens import TokenLayout

    return TokenLayout.from_tokenizer(tokenizer)


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory) -> Path:
    """A tiny random base model on disk."""
    from tests.tiny import save_base

    return save_base(tmp_path_factory.mktemp("base"))
