"""`/v1/models`: what there is and how it is, and loading, unloading, sleep and wake while the server runs.

Whoever may ask may also manage, as far as the deployment allows it (`manage_models`). A body must come as
`application/json`, which no web page can send across origins without being asked for permission first.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import FastAPI, Request
from pydantic import Field
from starlette.responses import Response
from typing_extensions import TypedDict

from armillary.deployment import ModelSettings
from armillary.errors import ArmillaryError, Code
from armillary.models.pooling import Kind
from armillary.server.body import parse_body, read_body
from armillary.server.endpoint import BODY_TIMEOUT_S, json_response
from armillary.server.fields import AnyBody
from armillary.server.keeper import Keeper
from armillary.server.openapi import GUARDED, OF_BODIES, OF_LOADING, described
from armillary.server.service import Service
from armillary.server.shelf import Place, State

LONGEST_DRAIN_S = 86400.0
OF_CHANGES = (*OF_BODIES, *OF_LOADING, Code.FORBIDDEN)


class NamedBody(AnyBody):
    """The body of a request about one model."""

    model: str = Field(min_length=1, max_length=512, description="The model's name or alias.")
    wait: bool = Field(True, description="Answer when it is done, or has failed; else at once, with 202.")


class LoadBody(AnyBody):
    """The body of `POST /v1/models/load`."""

    model: str = Field(
        min_length=1,
        max_length=4096,
        description="A name from the deployment; where it allows any, a folder or hub id too.",
    )
    name: str | None = Field(None, min_length=1, max_length=512, description="As in the deployment file.")
    aliases: list[str] | None = Field(None, max_length=64, description="As in the deployment file.")
    wake_on_request: bool | None = Field(None, description="As in the deployment file.")
    engine: dict[str, Any] | None = Field(None, description="Keys of `engine`, over those of the deployment.")
    wait: bool = Field(False, description="Answer when it is loaded, or has failed; else at once, with 202.")


class UnloadBody(NamedBody):
    """The body of `POST /v1/models/unload`."""

    drain_s: float | None = Field(
        None, ge=0, le=LONGEST_DRAIN_S, description="Seconds for running requests to end; 0 ends them. Unset: drain_s."
    )


class SleepBody(UnloadBody):
    """The body of `POST /v1/models/sleep`."""

    weights: Literal["keep", "drop"] = Field(
        "keep", description="keep them in memory for a quick wake, or drop them and read them from disk again."
    )


class ModelCard(TypedDict):
    """A model, under one of its names.

    `root` is its own name; `state` is loading, ready, draining, sleeping, waking or failed, or unloaded in the answer
    to an unload; `kind` is decoder, encoder or scorer, and null while it is not in memory.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    state: State
    kind: Kind | None
    max_model_len: int | None


class ModelList(TypedDict):
    """All models, under all their names."""

    object: Literal["list"]
    data: list[ModelCard]


class Memory(TypedDict):
    """What a model takes, in bytes: by its plan, and of the KV pool what has been written so far. `freed` is by how
    much the process became smaller when the model fell asleep."""

    weights: int
    kv: int
    kv_taken: int
    workspace: int
    freed: int | None


class Loading(TypedDict):
    """Where the time of the last load or wake goes or went. `phase` is what is being done now, null when it is over;
    of `weights_total` bytes of weights, `weights_read` are in place."""

    phase: str | None
    seconds: dict[str, float]
    total_s: float
    weights_read: int
    weights_total: int | None


class ModelDetails(ModelCard):
    """A model, and what is known of its engine. `error` says why the last load or wake failed."""

    aliases: list[str]
    error: str | None
    memory: Memory | None
    loading: Loading | None


def add_models(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""

    @app.get("/v1/models")
    @described(answer=ModelList)
    async def models() -> Response:
        """The models of this server."""
        service.check_open()
        data = [card(place, name) for place in service.shelf for name in place.names]
        return json_response({"object": "list", "data": data})

    @app.get("/v1/models/{name:path}")
    @described(answer=ModelDetails, errors=(*GUARDED, Code.MODEL_NOT_FOUND))
    async def model(name: str) -> Response:
        """One model: its state, its memory, its loading."""
        service.check_open()
        place = service.shelf.find(name)
        return json_response(details(place, name))

    @app.post("/v1/models/load")
    @described(body=LoadBody, answer=ModelDetails, errors=OF_CHANGES)
    async def load(request: Request) -> Response:
        """Load a model while the others serve."""
        keeper = _keeper(service)
        body = await _read(request, service, LoadBody)
        return await _answer(_load(keeper, service, body), body.wait)

    @app.post("/v1/models/unload")
    @described(body=UnloadBody, answer=ModelDetails, errors=OF_CHANGES)
    async def unload(request: Request) -> Response:
        """Take a model away once its requests have ended, and give its memory back."""
        keeper = _keeper(service)
        body = await _read(request, service, UnloadBody)
        place = service.shelf.find(body.model)
        keeper.unload(place, _drain_s(body, service))
        return await _answer(place, body.wait)

    @app.post("/v1/models/sleep")
    @described(body=SleepBody, answer=ModelDetails, errors=OF_CHANGES)
    async def sleep(request: Request) -> Response:
        """Give a model's KV cache back, and its weights if so wanted; it keeps its place."""
        keeper = _keeper(service)
        body = await _read(request, service, SleepBody)
        place = service.shelf.find(body.model)
        changes = keeper.sleep(place, body.weights == "keep", _drain_s(body, service)) is not None
        return await _answer(place, body.wait, changes)

    @app.post("/v1/models/wake")
    @described(body=NamedBody, answer=ModelDetails, errors=OF_CHANGES)
    async def wake(request: Request) -> Response:
        """Make a sleeping model ready again."""
        keeper = _keeper(service)
        body = await _read(request, service, NamedBody)
        place = service.shelf.find(body.model)
        changes = keeper.wake(place) is not None
        return await _answer(place, body.wait, changes)


def card(place: Place, name: str) -> ModelCard:
    """What a list says about a model under one of its names."""
    served = place.served
    return {
        "id": name,
        "object": "model",
        "created": place.created,
        "owned_by": "armillary",
        "root": place.name,
        "state": place.state,
        "kind": served.kind if served else None,
        "max_model_len": served.limits.max_context if served else place.plan.max_context if place.plan else None,
    }


def details(place: Place, name: str) -> ModelDetails:
    """All that is known about a model."""
    plan, watch, awake = place.plan, place.watch, place.loaded
    memory: Memory | None = None
    if plan is not None:
        memory = {
            "weights": plan.weights if awake is not None or place.kept is not None else 0,
            "kv": plan.kv if awake is not None else 0,
            "kv_taken": awake.kv_taken if awake is not None else 0,
            "workspace": plan.workspace if awake is not None else 0,
            "freed": place.freed,
        }
    loading: Loading | None = None
    if watch is not None:
        loading = {
            "phase": watch.current,
            "seconds": {phase: round(seconds, 6) for phase, seconds in watch.laps.items()},
            "total_s": round(watch.total, 6),
            "weights_read": place.weights_read,
            "weights_total": place.weights_total,
        }
    return {
        **card(place, name),
        "aliases": list(place.model.aliases),
        "error": place.error,
        "memory": memory,
        "loading": loading,
    }


async def _answer(place: Place, wait: bool, changes: bool = True) -> Response:
    """A model after its change has ended, or at once with 202. Whoever stops waiting leaves the change going on."""
    if wait and changes and place.change is not None:
        try:
            await asyncio.shield(place.change)
        except ArmillaryError:
            raise
        except Exception as error:  # the keeper has logged it, and the place keeps it
            raise ArmillaryError(
                Code.UNSUPPORTED_MODEL, f"the model {place.name!r} could not be loaded: {place.error}", "model"
            ) from error
    response = json_response(details(place, place.name))
    response.status_code = 202 if changes and not wait else 200
    return response


def _load(keeper: Keeper, service: Service, body: LoadBody) -> Place:
    """Begin to load what the body asks for."""
    listed = next((model for model in keeper.deployment.models if model.served_name == body.model), None)
    own = {"name": body.name, "aliases": body.aliases, "wake_on_request": body.wake_on_request, "engine": body.engine}
    given = {name: value for name, value in own.items() if value is not None}
    if service.settings.manage_models != "any" and (listed is None or given):
        names = ", ".join(repr(model.served_name) for model in keeper.deployment.models)
        what = f"given {sorted(given)[0]!r}" if listed is not None else f"given {body.model[:200]!r}"
        raise ArmillaryError(
            Code.FORBIDDEN,
            f"a model to load must be one of the deployment ({names}) and as it says, {what}; the server's setting "
            "`manage_models: any` allows others",
            sorted(given)[0] if listed is not None else "model",
        )
    model = _checked({**(listed.model_dump() if listed else {"path": body.model}), **given})
    try:
        engine = keeper.deployment.engine_of(model)
    except ValueError as error:
        raise ArmillaryError(Code.INVALID_REQUEST, str(error), "engine") from None
    return keeper.load(model, engine)


def _checked(values: dict[str, Any]) -> ModelSettings:
    from armillary.deployment.explain import checked

    try:
        return checked(ModelSettings, values, as_flags=False)
    except ArmillaryError as error:
        raise ArmillaryError(Code.INVALID_REQUEST, error.message, error.param) from None


def _keeper(service: Service) -> Keeper:
    """Who can do it, if it may be done now."""
    service.check_open()
    if service.settings.manage_models == "off" or service.keeper is None:
        raise ArmillaryError(
            Code.FORBIDDEN, "models of this server are not managed over HTTP: its setting `manage_models` is off"
        )
    return service.keeper


async def _read(request: Request, service: Service, kind: type[Any]) -> Any:
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise ArmillaryError(Code.INVALID_REQUEST, f"the content-type must be application/json, given {given[:80]!r}")
    with service.bodies.one() as held:
        raw = await read_body(request.receive, request.headers, service.settings.max_body, BODY_TIMEOUT_S, held)
        return parse_body(kind, raw)


def _drain_s(body: UnloadBody, service: Service) -> float:
    return service.settings.drain_s if body.drain_s is None else body.drain_s
