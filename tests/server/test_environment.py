"""What `serve` tells libraries through the environment, and that it never overrules who started it."""

from __future__ import annotations

import os

import pytest

from armillary.server import serve

NAMES = ("GOMP_SPINCOUNT", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {NAMES[0]: serve.SPINS, NAMES[1]: serve.PRODUCTS}),
        ({NAMES[0]: "7", NAMES[1]: "64"}, {NAMES[0]: "7", NAMES[1]: "64"}),
        ({NAMES[2]: "32"}, {NAMES[0]: serve.SPINS, NAMES[2]: "32"}),
    ],
)
def test_only_what_is_unset_is_set(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what is set below is taken back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    serve.set_environment()
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == expected
