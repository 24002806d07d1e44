"""Answers before anything runs: queueing formulas, designed experiments, search."""
