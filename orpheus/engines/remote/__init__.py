"""A server that has the model. Read servers (their dialects), engine, reply, token_text."""
