"""Bases and adapters. In: a hub id or folder. Out: a loaded model, and what is known of its making.

Read hub, provenance, base, adapter, upload.
"""
