"""Which kernels are chosen, and what is said where there is no choice."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from armillary.errors import ArmillaryError, Code
from armillary.kernels import native
from armillary.kernels.proof import agrees


@pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"))),
    reason="there is no compiler here",
)
def test_they_are_there_where_they_can_be_built() -> None:
    """An installation whose compiler fails goes on without them and says so; here that would be a defect."""
    assert native.module() is not None, "the native kernels were not built; `make native` says why"


@pytest.fixture
def two_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "paths", lambda: ["portable", "avx2"])


@pytest.mark.usefixtures("two_paths")
def test_the_fastest_path_unless_another_is_named() -> None:
    assert native.choose() == native.choose("") == native.choose("native") == "avx2"
    assert native.choose("portable") == "portable"
    assert native.choose("torch") is native.choose("reference") is None


@pytest.mark.usefixtures("two_paths")
def test_an_unknown_path_is_refused_with_those_there_are() -> None:
    with pytest.raises(ArmillaryError, match=r"torch, reference, native, portable, avx2 .* given 'amx'") as caught:
        native.choose("amx")
    assert caught.value.code is Code.INVALID_DEPLOYMENT


def test_without_the_extension_torch_computes_and_a_wish_for_native_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "paths", list)
    assert native.choose() is None
    with pytest.raises(ArmillaryError, match="were not built"):
        native.choose("native")


def test_memory_for_the_kernels_is_aligned() -> None:
    for size in (1, 63, 64, 1000):
        memory = native.aligned(size)
        assert memory.numel() == size
        assert memory.data_ptr() % native.ALIGNMENT == 0


@pytest.mark.skipif(native.module() is None, reason="the native kernels were not built")
def test_a_path_that_multiplies_wrongly_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    true = native.module()
    assert true is not None
    for path in true.paths():
        assert agrees(true, path)

    class Broken:
        """The extension, but for one output of every product."""

        def __getattr__(self, name: str) -> Any:
            return getattr(true, name)

        def linear(self, weight: Any, x: torch.Tensor, y: torch.Tensor) -> None:
            true.linear(weight, x, y)
            y[:, 70] = y[:, 71]

    broken: Any = Broken()
    assert not agrees(broken, true.paths()[0])
    monkeypatch.setattr(native, "module", lambda: broken)
    monkeypatch.setattr(native, "RARE", tuple(true.paths()[-1:]))
    native.paths.cache_clear()
    try:
        assert native.paths() == true.paths()[:-1]
    finally:
        native.paths.cache_clear()
