"""How good a voice is. In: a voice, recordings. Out: figures with intervals, a report.

Read evaluate, clips, measure, listen, report.
"""
