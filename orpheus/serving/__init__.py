"""The parts of the speech server: requests, admission, answers, keys, counts."""
