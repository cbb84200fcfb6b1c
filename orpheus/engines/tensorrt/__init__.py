"""TensorRT-LLM, in process. Read engine, then smoke (its test program)."""
