"""The programs above all rooms. In: their options. Out: train: an adapter, speak: WAV files, doctor: what this machine
has and lacks, bench: how fast it is. Read train.py, then speak.py.
"""
