"""vLLM, in process. Read engine."""
