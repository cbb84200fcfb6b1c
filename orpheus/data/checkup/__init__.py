"""A check-up of a voice's recordings: what is measured in each clip, what that says, and a report.

Read features, finding, findings/, examine, report.
"""
