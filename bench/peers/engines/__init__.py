"""Adapters: one engine a file, run in the environment of that engine (`armillary*`: in this project's own)."""
