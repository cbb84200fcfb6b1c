"""Measurements: one script a claim. Each writes what it found, and on which machine, into results/."""
