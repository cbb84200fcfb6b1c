"""Shared fixtures: tiny seeded models. No test may use the network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tokenizer():
    """A tokenizer in the published order that adds BOS itself, like Llama 3's."""
    from tests.support.tiny import build_tokenizer

    return build_tokenizer()


@pytest.fixture(scope="session")
def layout(tokenizer):
    """The token layout of the tiny tokenizer."""
    from orpheus.format.tokens import TokenLayout

    return TokenLayout.from_tokenizer(tokenizer)


@pytest.fixture(scope="session")
def renderer(tokenizer, layout):
    """What makes prompts and examples for the tiny tokenizer."""
    from orpheus.format.prompt import Renderer

    return Renderer(tokenizer, layout)


@pytest.fixture(scope="session")
def codec():
    """A tiny codec."""
    from orpheus.codec.snac import SnacCodec
    from tests.support.codec_fixtures import tiny_snac

    return SnacCodec.from_model(tiny_snac())


@pytest.fixture
def run(tmp_path, renderer, codec):
    """`corpus.prepare` with everything named that a test does not care about."""
    from orpheus.config import CorpusOptions
    from orpheus.data.corpus import Corpus, prepare

    def call(dataset: Any = None, *, codec: Any = codec, max_seq_length: int = 4096, seed: int = 0, progress=False,
             **options: Any) -> Corpus:  # fmt: skip
        if isinstance(dataset, (str, Path)):
            options["dataset"], dataset = str(dataset), None
        options = {"cache_dir": tmp_path / "cache", "validation_share": 0.0} | options
        return prepare(CorpusOptions(**options), codec, renderer, max_seq_length=max_seq_length, seed=seed,
                       dataset=dataset, progress=progress)  # fmt: skip

    return call


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory) -> Path:
    """A tiny random base model on disk."""
    from tests.support.tiny import save_base

    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def codec_dir(tmp_path_factory) -> Path:
    """A tiny codec on disk."""
    from tests.support.voices import save_codec

    return save_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="session")
def adapter_dir(tmp_path_factory, base_dir, codec_dir) -> Path:
    """A random adapter that was 'trained' on plain text."""
    from tests.support.voices import save_random_adapter

    return save_random_adapter(tmp_path_factory.mktemp("adapter"), base_dir, codec_dir)


@pytest.fixture(scope="session")
def tts(adapter_dir):
    """OrpheusInference on the tiny random model."""
    from orpheus.speak.inference import OrpheusInference

    return OrpheusInference(adapter_dir)
