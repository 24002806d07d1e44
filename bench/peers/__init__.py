"""Armillary beside other engines, on the same machine, models and token ids: `make bench-peers`.

Each engine lives in an environment and a process of its own (`environments.py`, `process.py`) and is reached through
one small adapter (`engines/`) by JSON lines (`protocol.py`). Workloads are in `workloads.py`, models in `shapes.py`,
what the machine could do at most in `limits.py`, the table in `table.py`, and what is measured when in `run.py`.
"""
