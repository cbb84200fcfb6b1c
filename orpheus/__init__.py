"""Fine-tune Orpheus TTS with LoRA and speak with it: `from orpheus import OrpheusInference, train`.

Importing this package loads nothing heavy: each name is fetched from its room when it is first asked for.
"""

import os
import sys
import warnings
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "OrpheusInference": "orpheus.speak.inference",
    "Speech": "orpheus.speak.speech",
    "SnacCodec": "orpheus.codec.snac",
    "StreamingDecoder": "orpheus.codec.snac",
    "TokenLayout": "orpheus.format.tokens",
    "UserError": "orpheus.errors",
    "train": "orpheus.tools.train",
}
__all__ = [*_ROOMS]


def __getattr__(name: str) -> Any:
    """A public name, from the room where it lives."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'orpheus' has no attribute '{name}'")
    return getattr(import_module(_ROOMS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_ROOMS])


# PyTorch's waiting threads spin, which on shared cores makes a sentence of 4 s take 47. OpenMP reads this as PyTorch
# loads, so it is the one thing that this import does.
if "OMP_WAIT_POLICY" not in os.environ:
    if "torch" not in sys.modules:
        os.environ["OMP_WAIT_POLICY"] = "passive"
    else:
        warnings.warn(
            "PyTorch was loaded before orpheus, so its threads spin while they wait, which is slow on shared cores: "
            "import orpheus first, or set the environment variable OMP_WAIT_POLICY=passive",
            stacklevel=2,
        )
