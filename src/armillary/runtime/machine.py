"""What this machine has, as far as a process inside it may use it."""

from __future__ import annotations

import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

NOTABLE = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8",
    "amx_bf16", "asimd", "asimddp", "fphp", "bf16", "i8mm", "sve", "sve2", "sme",
)  # fmt: skip
"""CPU features that decide how fast a model runs, under the names that Linux gives them."""

_MACOS_FEATURES = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_FP16": "fphp",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.avx2_0": "avx2",
    "hw.optional.fma": "fma",
    "hw.optional.f16c": "f16c",
    "hw.optional.avx512f": "avx512f",
}


@dataclass(frozen=True)
class Machine:
    """The machine as this process may use it.

    Attributes:
        system: operating system, architecture, for people.
        cpu: name of the processor, for people.
        features: those of `NOTABLE` that the CPU has.
        physical_cores, logical_cores: of the whole machine.
        usable_cores: hardware threads that this process may run on, after affinity and container limits.
        memory: bytes of main memory, after container limits.
        available: bytes that can be taken now without swapping.
    """

    system: str
    cpu: str
    features: tuple[str, ...]
    physical_cores: int
    logical_cores: int
    usable_cores: int
    memory: int
    available: int

    @property
    def native_bf16(self) -> bool:
        """Whether the CPU multiplies bfloat16 itself, so that it is faster than float32 in large products."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(self.features))

    @property
    def threads(self) -> int:
        """How many threads should compute: one per physical core that may be used."""
        return max(1, min(self.physical_cores, self.usable_cores))


def read_machine() -> Machine:
    """Ask the operating system. Never raises; what cannot be found out is left at a safe value."""
    logical = psutil.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    if (quota := _cpu_quota()) is not None:
        usable = min(usable, max(1, int(quota)))
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    if (limit := _memory_limit()) is not None and limit[0] < total:
        total, available = limit[0], min(available, limit[0] - limit[1])
    name, flags = _cpu()
    return Machine(
        system=f"{platform.system()} ({platform.machine()})",
        cpu=name,
        features=tuple(feature for feature in NOTABLE if feature in flags),
        physical_cores=psutil.cpu_count(logical=False) or logical,
        logical_cores=logical,
        usable_cores=usable,
        memory=total,
        available=max(0, available),
    )


def _cpu() -> tuple[str, frozenset[str]]:
    """Name and features of the processor."""
    if platform.system() == "Darwin":
        listed = _sysctl(["machdep.cpu.brand_string", *_MACOS_FEATURES])
        flags = {feature for key, feature in _MACOS_FEATURES.items() if listed.get(key) == "1"}
        return listed.get("machdep.cpu.brand_string", platform.processor()), frozenset(flags)
    fields: dict[str, str] = {}
    for line in _read("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _sysctl(keys: list[str]) -> dict[str, str]:
    """Values of those keys that this kernel knows."""
    try:
        done = subprocess.run(["/usr/sbin/sysctl", *keys], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return {}
    pairs = (line.partition(": ") for line in done.stdout.splitlines())
    return {key: value for key, _, value in pairs}


def _cpu_quota() -> float | None:
    """CPUs that the control group grants, or None without a limit."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.strip().isdigit() and period.strip().isdigit():
        return int(quota) / int(period)
    quota, period = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
    if quota.strip().isdigit() and period.strip().isdigit():
        return int(quota) / int(period)
    return None


def _memory_limit() -> tuple[int, int] | None:
    """(limit, used) in bytes of the control group, or None without a limit."""
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        limit, used = _read(limit_file).strip(), _read(used_file).strip()
        if limit.isdigit() and used.isdigit():
            return int(limit), int(used)
    return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
