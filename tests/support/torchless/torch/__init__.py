"""Stands before the real one on the path: whoever loads PyTorch fails."""

raise AssertionError("PyTorch was loaded before the mistake was told")
