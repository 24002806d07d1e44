"""Which kernels are chosen, and what is said where there is no choice."""

from __future__ import annotations

import ast
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.kernels import native
from armillary.kernels.lines import HUGE_BYTES
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


@pytest.fixture
def looked_for_anew() -> Iterator[None]:
    """What was found at the first use is kept; not beyond this test."""
    native.find.cache_clear()
    native.paths.cache_clear()
    yield
    native.find.cache_clear()
    native.paths.cache_clear()


def raising(error: Exception) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        raise error

    return load


@pytest.mark.usefixtures("looked_for_anew")
@pytest.mark.parametrize(
    ("load", "compiler", "words"),
    [
        (raising(ModuleNotFoundError("no")), None, "were not built: no C++ compiler at install"),
        (raising(ModuleNotFoundError("no")), "g++", "were not built, though g++ is here: `make native` builds them or"),
        (raising(ImportError("undefined symbol")), "g++", "cannot be loaded (undefined symbol): run `make native`"),
        (
            lambda name: SimpleNamespace(paths=list),
            None,
            f"are of interface 1 where this version calls {native.INTERFACE}: run `make",
        ),
        (lambda name: SimpleNamespace(interface=99), None, "are of interface 99 where this version calls"),
    ],
)
def test_without_the_extension_torch_computes_and_it_is_said_once_why(
    load: Callable[[str], Any],
    compiler: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delenv(native.VARIABLE, raising=False)
    monkeypatch.setattr(native, "import_module", load)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == compiler else None)
    with caplog.at_level(logging.WARNING):
        assert native.choose("torch") is None and not caplog.records
        assert native.chosen() is native.choose() is native.module() is None
    (record,) = caplog.records
    assert f"torch alone, several times slower: the native kernels {words}" in record.message
    assert words in native.why(), "as the memory plan prints it"
    with pytest.raises(
        ArmillaryError, match=f"torch, reference on this machine, given 'native'; .* {re.escape(words)}"
    ):
        native.choose("native")


def test_what_may_be_called_has_a_number_of_its_own() -> None:
    """An extension built before a change must be refused. So where this fails: raise `INTERFACE` and `interface` in
    `src/native/module.cpp`, unless only words have changed, and note the stub's new digest here."""
    stub = Path(native.__file__).with_name("_native.pyi").read_bytes()
    assert (native.INTERFACE, f"{crc32(stub):08x}") == (8, "327de56d")


@pytest.mark.skipif(native.module() is None, reason="the native kernels are not used")
def test_the_stub_names_what_is_there() -> None:
    def names(body: list[ast.stmt]) -> dict[str, list[ast.stmt]]:
        found = {node.name: node.body for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        return found | {node.target.id: [] for node in body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]

    told = names(ast.parse(Path(native.__file__).with_name("_native.pyi").read_text()).body)
    assert set(told) <= set(vars(native.extension()))
    for name, body in told.items():
        assert all(hasattr(getattr(native.extension(), name), member) for member in names(body)), name


def test_memory_for_the_kernels_is_aligned() -> None:
    for size in (1, 63, 64, 1000):
        memory = native.aligned(size)
        assert memory.size == size
        assert memory.ctypes.data % native.ALIGNMENT == 0


@pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="this system has no huge pages"
)
def test_much_memory_asks_for_huge_pages_and_is_shared_with_nobody() -> None:
    """Pages that could be shared get huge ones by another switch, which is mostly off."""
    memory = native.aligned(HUGE_BYTES)
    flags: list[str] = []
    begin = end = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            begin, end = (int(place, 16) for place in found.groups())
        elif line.startswith("VmFlags:") and begin <= memory.ctypes.data < end:
            flags = line.split()[1:]
    assert "hg" in flags and "sh" not in flags


@pytest.mark.skipif(native.module() is None, reason="the native kernels were not built")
def test_memory_that_the_system_refuses_is_refused_as_memory() -> None:
    for ask in (native.aligned, native.pages):
        with pytest.raises(MemoryError):
            ask(1 << 60)


@pytest.mark.parametrize("part", ["products", "attention"])
def test_a_path_that_computes_wrongly_is_left_out(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    true = native.module()
    assert true is not None
    for path in true.paths():
        assert agrees(true, path)

    class Cache:
        """One whose attention leaves a token's result in the place of the next one's."""

        def __init__(self, *shape: Any) -> None:
            self.true = true.KvCache(*shape)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.true, name)

        def attend(self, qkv: Any, out: Any, *rest: Any) -> None:
            self.true.attend(qkv, out, *rest)
            out[70] = out[69]

    class Broken:
        """The extension, but for one output of every product, or one token's attention."""

        def __getattr__(self, name: str) -> Any:
            return Cache if (part, name) == ("attention", "KvCache") else getattr(true, name)

        def linear(self, weight: Any, x: Any, y: Any) -> None:
            true.linear(weight, x, y)
            if part == "products":
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
