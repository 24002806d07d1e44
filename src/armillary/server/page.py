"""`/`: a page to look at, from files in the package.

Plain HTML, CSS and JavaScript modules, read once and served from memory. The policy sent with them lets the page load
from this server and talk to this server, and nothing else: no other host, no inline script, no text turned into markup.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

FOLDER = "page"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # the browser itself refuses innerHTML, whatever a model wrote
        "trusted-types 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",  # ask each time, by tag: a new release is seen at once
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, as it is sent."""

    data: bytes
    kind: str
    tag: str


def add_page(app: FastAPI) -> None:
    """Add `/` and the files that it asks for. They hold no secret, so they ask for no key; what they show does."""

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def index(request: Request) -> Response:
        return _answer(request, "index.html")

    @app.api_route("/favicon.ico", methods=["GET", "HEAD"], include_in_schema=False)
    async def favicon(request: Request) -> Response:
        """What browsers ask for beside any document that names no icon, such as an answer of the API."""
        return _answer(request, "icon.svg")

    @app.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise HTTPException(404)
    headers = {**HEADERS, "etag": found.tag}
    if found.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(found.data, headers=headers, media_type=found.kind)


@cache
def page_files() -> dict[str, PageFile]:
    """Name -> file. What is not in here is not served, whatever a path says."""
    found: dict[str, PageFile] = {}
    for entry in (files("armillary.server") / FOLDER).iterdir():
        kind = KINDS.get(entry.name[entry.name.rfind(".") :])
        if kind is not None and entry.is_file():
            data = entry.read_bytes()
            found[entry.name] = PageFile(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found
