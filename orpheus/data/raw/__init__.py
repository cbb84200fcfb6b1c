"""From raw recordings to a data set: found, heard, cut at pauses, given their texts, written.

`command` is the door; every decision stands in a table that a person may edit.
"""
