"""PyTorch. Read engine, llama (our forward pass), frames, cpu; then slots, shared (many callers), speculative."""
