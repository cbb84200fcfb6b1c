"""What computes the next token. In: prompts as ids. Out: ids as they are drawn. One folder an engine.

Read base (what an engine is), sampling, batch, background, then torch/engine; choose opens the right one.
"""
