"""Say so before a CPU-only machine downloads gigabytes of CUDA.

On Linux most package indexes offer torch built for CUDA, with some 3 GB of libraries behind it, under the
same name and version as the CPU build of 200 MB. Both work here. pip cannot tell them apart beforehand, but the
metadata of the wheel that it would take can: the CUDA build requires nvidia-* packages.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import time

NOTICE = """
  Note: your package index offers {requirement} for CUDA: about 3 GB. The CPU build of the same version is about
  200 MB and does the same here. To take that, stop now and name PyTorch's index of CPU wheels, which the selector
  on PyTorch's "Get Started" page shows for Linux, Pip, CPU after --index-url:

      make serve TORCH_INDEX=<that address>

  Going on with the CUDA build in 15 seconds.
"""


def offers_cuda(requirement: str) -> bool:
    """Whether pip, as configured, would take a wheel that needs CUDA libraries."""
    report = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--quiet", "--report", "-", requirement],
        capture_output=True,
        text=True,
        check=False,
    )
    if report.returncode != 0:
        return False  # the installation that follows says why
    wheels = json.loads(report.stdout)["install"]
    return any(
        need.startswith(("nvidia-", "cuda-")) for wheel in wheels for need in wheel["metadata"].get("requires_dist", [])
    )


def main(requirement: str, index: str) -> None:
    if index or platform.system() != "Linux" or shutil.which("nvidia-smi") is not None:
        return
    if offers_cuda(requirement):
        print(NOTICE.format(requirement=requirement), flush=True)
        time.sleep(15)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
