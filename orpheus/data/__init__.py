"""Recordings to training sequences. In: any data set. Out: checked clips, codes, sequences, a report.

Read sources, encoding, corpus, usual (what is usual in a voice), prepare (the command).
"""
