"""What every test shares: one thread per process for stable timing, and hypothesis without a deadline."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

# Before anything imports torch: two cores running sixteen threads each is how a quick suite becomes a slow one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# No test may reach for a network; what needs a hub must say so and be given a folder.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
from hypothesis import settings

# A wall-clock deadline fails on a busy machine and says nothing about the code.
settings.register_profile("armillary", deadline=None, print_blob=True)
settings.load_profile("armillary")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-minutes", type=float, default=0.0, help="length of the soak; 0 leaves it out")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--soak-minutes") > 0:
        return
    skip = pytest.mark.skip(reason="takes minutes: `make soak MINUTES=3` runs it")
    for item in items:
        if item.get_closest_marker("soak"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def one_thread_again() -> Iterator[None]:
    """An engine sets torch's threads for the whole process; the next test must not inherit them."""
    yield
    if (torch := sys.modules.get("torch")) is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)
