"""From a file and flags to a checked `Deployment`, with errors that say where and what would work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from armillary.deployment.document import Document, KeyPath, dotted, read
from armillary.deployment.explain import explain, flag_name, known_keys
from armillary.deployment.faults import located
from armillary.deployment.settings import Deployment
from armillary.errors import ArmillaryError, Code


def load(path: str | Path) -> Deployment:
    """Read a deployment file.

    A path in the file that begins with `./` or `../` is taken from the file's folder.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT; one line per problem, each with file, line, key, value given
            and what would work.
    """
    return build(path)


def build(
    path: str | Path | None = None,
    *,
    model: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
) -> Deployment:
    """Lay single settings over a file, or over the defaults where there is no file.

    Args:
        path: a deployment file, or None.
        model, engine, server: field name -> value, for the fields that are to be set. A problem with one of
            these is reported under the name of its flag.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT, as `load`.
    """
    document = read(Path(path).expanduser()) if path is not None else None
    content: dict[str, Any] = dict(document.content) if document else {}
    given: set[KeyPath] = set()
    for group, values in (("engine", engine), ("server", server)):
        if values:
            before = content.get(group)
            content[group] = {**(before if isinstance(before, dict) else {}), **values}
            given |= {(group, name) for name in values}
    if model:
        listed = content.get("models")
        content["models"] = [{**_first_model(listed), **model}, *(listed[1:] if isinstance(listed, list) else ())]
        given |= {("models", 0, name) for name in model}
    if document:
        _resolve_paths(content, document.path.absolute().parent, given)
    if engine:
        _lay_over_own(content, engine)
    try:
        return Deployment.model_validate(content)
    except ValidationError as error:
        found = located(error, content)
        lines = [
            explain(problem, _name(problem["loc"], document, given), known_keys(Deployment, problem["loc"]))
            for problem in found
        ]
        raise ArmillaryError(Code.INVALID_DEPLOYMENT, "\n".join(lines), param=dotted(found[0]["loc"])) from None


_ONE_POOL = {"kv_blocks": "kv_memory", "kv_memory": "kv_blocks"}
"""Settings of which one says what the other would."""


def _lay_over_own(content: dict[str, Any], flags: Mapping[str, Any]) -> None:
    """Leave out of what models and kinds of replicas have of `engine` for themselves what flags say: flags win over the
    file, wherever in it a setting stands."""
    hidden = {*flags, *(_ONE_POOL[name] for name in flags if name in _ONE_POOL)}

    def without(entry: Any) -> Any:
        own = entry.get("engine") if isinstance(entry, dict) else None
        if not isinstance(own, dict) or not hidden & own.keys():
            return entry
        return {**entry, "engine": {name: value for name, value in own.items() if name not in hidden}}

    if isinstance(content.get("models"), list):
        content["models"] = [without(entry) for entry in content["models"]]
    fleet = content.get("fleet")
    if isinstance(fleet, dict) and isinstance(fleet.get("replicas"), list):
        content["fleet"] = {**fleet, "replicas": [without(entry) for entry in fleet["replicas"]]}


def _first_model(models: Any) -> dict[str, Any]:
    first = models[0] if isinstance(models, list) and models else {}
    return {"path": first} if isinstance(first, str) else first if isinstance(first, dict) else {}


def _resolve_paths(content: dict[str, Any], folder: Path, given: set[KeyPath]) -> None:
    """Take `./x` and `../x` in a file from the file's folder; leave flags to the current folder."""

    def resolved(value: Any, key: KeyPath) -> Any:
        relative = isinstance(value, str) and key not in given and value.startswith(("./", "../"))
        return str(folder / value) if relative else value

    def within(entry: Any, name: str, key: KeyPath) -> Any:
        """The mapping with the path under `name` resolved; the journal's, where `name` is an engine's settings."""
        if not isinstance(entry, dict) or name not in entry:
            return entry
        value = entry[name]
        own = (*key, name)
        return {**entry, name: within(value, "journal", own) if name == "engine" else resolved(value, own)}

    models = content.get("models")
    if isinstance(models, list):
        content["models"] = [
            within(within(entry, "path", ("models", index)), "engine", ("models", index))
            if isinstance(entry, dict)
            else resolved(entry, ("models", index))
            for index, entry in enumerate(models)
        ]
    if "engine" in content:
        content["engine"] = within(content["engine"], "journal", ("engine",))
    if "server" in content:
        content["server"] = within(content["server"], "api_key_file", ("server",))


def read_contents(path: str | Path) -> dict[str, Any]:
    """What a deployment file holds, unchecked, with the whole paths of what lies beside it.

    Raises ArmillaryError: as `document.read`.
    """
    document = read(Path(path).expanduser())
    return rooted(document.content, document.path.parent)


def rooted(content: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The contents of a deployment, with paths that begin with `./` or `../` taken from a folder."""
    found = dict(content)
    _resolve_paths(found, folder.absolute(), set())
    return found


def _name(key: KeyPath, document: Document | None, given: set[KeyPath]) -> str:
    """How the user knows a key: by its flag, or by its place in the file."""
    if key in given:
        return flag_name(str(key[-1]))
    name = dotted(key) or "the deployment"
    return f"{document.place(key)}: {name}" if document else name
