"""llama.cpp, in process, for .gguf files. Read model, then engine."""
