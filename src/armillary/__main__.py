"""`python -m armillary`: the command line."""

from __future__ import annotations

from armillary.cli.main import run

if __name__ == "__main__":
    run()
