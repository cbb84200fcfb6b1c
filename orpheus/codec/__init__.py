"""SNAC. In: samples. Out: codes, three layers; and back, whole or as a stream that equals the whole.

Read snac, then convolutions (how a stream carries its state).
"""
