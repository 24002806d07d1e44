"""Print what an extra of the package asks for, one requirement a line: `python tools/requirements.py dev`.

For installing the tools of development beside a package that is there already: `pip install -e ".[dev]"` would build it
a second time.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(extra: str) -> list[str]:
    """The requirements of an extra, those of other extras that it names included."""
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: list[str] = []
    for line in project["optional-dependencies"][extra]:
        if line.startswith(f"{project['name']}["):
            found += requirements(line.removeprefix(f"{project['name']}[").removesuffix("]"))
        else:
            found.append(line)
    return found


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
