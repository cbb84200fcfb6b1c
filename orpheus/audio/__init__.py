"""Sound as samples. In: files and bytes of any format. Out: float32 at 24 kHz, files, streams.

Read recordings, then encoders (streamed formats), schedule (when chunks go out), joins (between pieces).
"""
