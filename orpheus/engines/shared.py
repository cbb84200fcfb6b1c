"""Stand-in until the real one lands."""

from __future__ import annotations

from orpheus.engines.base import Engine


def share(engine: Engine, slots: int) -> Engine:
    """The engine itself."""
    return engine
