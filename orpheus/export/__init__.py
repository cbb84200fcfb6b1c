"""A voice as one model for other programs. In: base and adapter. Out: safetensors or .gguf, checked.

Read command, merged, gguf, check.
"""
