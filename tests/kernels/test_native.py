"""Which kernels are chosen, and what is said where there is no choice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.kernels import native


@pytest.fixture
def two_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "module", lambda: SimpleNamespace(paths=lambda: ["portable", "avx2"]))


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
    monkeypatch.setattr(native, "module", lambda: None)
    assert native.choose() is None
    with pytest.raises(ArmillaryError, match="were not built"):
        native.choose("native")


def test_memory_for_the_kernels_is_aligned() -> None:
    for size in (1, 63, 64, 1000):
        memory = native.aligned(size)
        assert memory.numel() == size
        assert memory.data_ptr() % native.ALIGNMENT == 0
