"""The keys of a server: where they come from, whom they belong to, and how one is recognised.

A key file has one key a line (what follows `#` at the beginning of a line is a remark), or is YAML: a list whose
entries are keys, or `key` with a `name` and limits. Keys never reach a log line, a metric or an error.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, ValidationError

from armillary.deployment import ServerSettings, Settings
from armillary.errors import ArmillaryError, Code
from armillary.server.admission import Caller, Limits

log = logging.getLogger("armillary.server")

OTHERS = stat.S_IRWXG | stat.S_IRWXO
MAX_FILE = 16 * 1024**2

Rate = Annotated[int, Field(ge=1, le=2**53)]


class KeyEntry(Settings):
    """One entry of a key file. What is unset is as the server's settings have it for every key."""

    model_config = ConfigDict(defer_build=True)  # its patterns take 30 ms to compile, and few servers have such a file

    key: Annotated[str, Field(pattern=r"^[^\x00-\x20\x7f]+$", max_length=1024, repr=False)]
    name: Annotated[str, Field(pattern=r"^[\w .:@/-]{1,64}$")] | None = None
    requests_per_minute: Rate | None = None
    tokens_per_minute: Rate | None = None
    max_waiting: Rate | None = None
    max_waiting_tokens: Rate | None = None
    priority: int | None = None
    highest_priority: int | None = None


class Keyring:
    """Finds the caller of a request by its key.

    Args:
        settings: keys, the file of further ones, and the limits of keys that have none of their own.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT, with file and entry, and never with a key.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._anyone = Caller("", self._limits(None))
        self._callers: list[tuple[bytes, Caller]] = []
        self._unnamed: dict[bytes, str] = {}
        """What the keys that have no name of their own were called, those that are gone included: nobody inherits."""
        self._read()

    @property
    def asks(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._callers)

    @property
    def file(self) -> Path | None:
        """Where further keys come from."""
        return self._settings.api_key_file

    def find(self, headers: Mapping[str, str]) -> Caller:
        """Whose key a request carries, in `Authorization: Bearer` or in `x-api-key`.

        It is compared with every key, each in constant time and by digest, whether one matched already or
        not: timing tells nothing about any of them, nor about their lengths.

        Raises:
            ArmillaryError: UNAUTHORIZED.
        """
        if not self._callers:
            return self._anyone
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        given = _digest(key.strip().encode("latin-1", "replace"))  # headers are decoded so; this is what was sent
        matches = [hmac.compare_digest(given, known) for known, _ in self._callers]
        if not any(matches):
            told = "a wrong one" if key else "none"
            raise ArmillaryError(
                Code.UNAUTHORIZED,
                "the Authorization header must be `Bearer` and a valid API key, or x-api-key must be one, "
                f"given {told}",
            )
        return self._callers[matches.index(True)][1]

    def reload(self) -> None:
        """Read the key file anew. A file that is wrong changes nothing and is logged; so is one that is gone.

        Callers who stay keep what they have used of their rates.
        """
        try:
            self._read()
        except ArmillaryError as error:
            log.error("the key file was not read anew, and the keys stay as they are: %s", error.message)
        else:
            log.info("the key file was read anew: %d keys", len(self._callers))

    def _read(self) -> None:
        inline = [{"key": key} for key in self._settings.api_keys]
        entries = [_entry("api_keys", place, value) for place, value in enumerate(inline, 1)]
        if self.file is not None:
            entries += read_key_file(self.file)
        before = {caller.name: caller for _, caller in self._callers}
        callers: list[tuple[bytes, Caller]] = []
        digests: set[bytes] = set()
        names: set[str] = set()
        unnamed = self._unnamed.copy()
        taken = {entry.name for entry in entries} | {*unnamed.values()}
        for place, entry in enumerate(entries, 1):
            digest = _digest(entry.key.encode())
            name = entry.name or unnamed.get(digest) or _free(taken, place)
            if digest in digests or name in names:
                what = "key" if digest in digests else "name"
                raise ArmillaryError(
                    Code.INVALID_DEPLOYMENT,
                    f"keys and their names must differ, given the same {what} again as number {place} ({name})",
                    "api_key_file" if self.file is not None else "api_keys",
                )
            digests.add(digest)
            names.add(name)
            if entry.name is None:
                unnamed[digest] = name
                taken.add(name)
            caller = Caller(name, self._limits(entry))
            if name in before:
                caller.take_over(before[name])
            callers.append((digest, caller))
        self._callers, self._unnamed = callers, unnamed

    def _limits(self, entry: KeyEntry | None) -> Limits:
        common = self._settings
        own: dict[str, Any] = {} if entry is None else entry.model_dump(exclude={"key", "name"}, exclude_none=True)
        return Limits(
            **{
                "requests_per_minute": common.requests_per_minute,
                "tokens_per_minute": common.tokens_per_minute,
                "max_waiting": common.max_waiting_per_key,
                "max_waiting_tokens": common.max_waiting_tokens_per_key,
                **own,
            }
        )


def read_key_file(path: Path) -> list[KeyEntry]:
    """The entries of a key file; says so where others than its owner may read it.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            raw = file.read(MAX_FILE + 1)
        text = raw.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise _wrong(f"must be a text file that can be read, given {path}: {why}") from None
    if len(raw) > MAX_FILE:
        raise _wrong(f"must be of at most {MAX_FILE} bytes, given {path}, which has more")
    if mode & OTHERS:
        log.warning("%s may be read by others (mode %o): chmod 600 keeps its keys to its owner", path, mode)
    if path.suffix in (".yaml", ".yml"):
        found = _yaml_entries(path, text)
    else:
        lines = [line.strip() for line in text.splitlines()]
        found = [{"key": line} for line in lines if line and not line.startswith("#")]
    if not found:
        raise _wrong(f"must hold at least one key, given {path}, which has none")
    return [_entry(f"api_key_file {path}", place, value) for place, value in enumerate(found, 1)]


def _yaml_entries(path: Path, text: str) -> list[Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise _wrong(f"must be valid YAML, given {path}{where}") from None  # what YAML quotes may be a key
    if not isinstance(value, list):
        raise _wrong(f"must be a list of keys, given {path}, which is none")
    return [{"key": each} if isinstance(each, str) else each for each in value]


def _entry(source: str, place: int, value: Any) -> KeyEntry:
    try:
        return KeyEntry.model_validate(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden" or not field:
            says = f"must have no other members than {', '.join(KeyEntry.model_fields)}"
        elif field == "key":
            says = "must have a key of 1 to 1024 visible characters without a space"
        else:
            says = f"has a {field} that is not valid ({problem['msg']})"
        raise ArmillaryError(
            Code.INVALID_DEPLOYMENT, f"entry {place} of {source} {says}", source.partition(" ")[0]
        ) from None


def _wrong(message: str) -> ArmillaryError:
    return ArmillaryError(Code.INVALID_DEPLOYMENT, f"api_key_file {message}", "api_key_file")


def _free(taken: Collection[str | None], place: int) -> str:
    """What the key at this place is called, if it has no name: after its place, or the next number that is free."""
    while f"key-{place}" in taken:
        place += 1
    return f"key-{place}"


def _digest(key: bytes) -> bytes:
    """Keys are compared by digest, so that not even their length shows."""
    return hashlib.sha256(key).digest()
