"""The files of the page: complete, self-contained, under a strict policy, and gone where a deployment says so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from armillary.deployment import ServerSettings
from armillary.server.page import page_files
from server.harness import Running

FOLDER = Path(__file__).parents[2] / "src" / "armillary" / "server" / "page"
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("page"), settings=ServerSettings(port=0, api_keys=("s3cret",)))
    server.wait()
    yield server
    server.stop()


def test_the_page_and_all_it_asks_for_are_served_without_a_key(running: Running) -> None:
    page = running.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    asked = set(re.findall(r'(?:href|src)="(page/[^"]+)"', page.text))
    for text in TEXTS.values():
        asked |= {f"page/{name}" for name in re.findall(r'from "\./([^"]+)"', text)}
    assert {f"page/{name}" for name in TEXTS} - asked == {"page/index.html"}, "no file that nobody asks for"
    for name in asked:
        answer = running.get(f"/{name}")
        assert answer.status_code == 200, name
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert running.get("/v1/models").status_code == 401, "what the page shows needs the key"


def test_what_browsers_ask_for_unasked_is_there(running: Running) -> None:
    """Beside each document that names no icon, such as an answer of the API; a 404 would stand in the console."""
    icon = running.get("/favicon.ico")
    assert icon.status_code == 200 and icon.headers["content-type"] == "image/svg+xml"
    assert icon.content == running.get("/page/icon.svg").content


def test_the_policy_allows_this_server_only_and_no_markup_from_text(running: Running) -> None:
    policy = running.get("/").headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert {rules[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert rules["require-trusted-types-for"] == "'script'" and rules["frame-ancestors"] == "'none'"


def test_a_file_is_sent_again_only_when_it_changed(running: Running) -> None:
    first = running.get("/page/base.css")
    again = running.get("/page/base.css", headers={"if-none-match": first.headers["etag"]})
    assert again.status_code == 304 and not again.content
    head = httpx.head(f"{running.url}/")
    assert head.status_code == 200 and not head.content


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/..%2f__init__.py", "/page/../page.py", "/page/", "/page"])
def test_nothing_else_of_the_package_is_served(running: Running, path: str) -> None:
    answer = running.get(path, headers={"authorization": "Bearer s3cret"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_the_files_name_no_other_host_and_make_no_markup() -> None:
    for name, text in TEXTS.items():
        addresses = set(re.findall(r"https?://[\w.-]+", text))
        assert addresses <= {"http://www.w3.org"}, name  # the name of SVG, which nothing fetches
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert sink not in text, (name, sink)
        assert not re.search(r"<[^>]+\s(style|on\w+)=", text) or name != "index.html"


def test_the_package_has_every_file_of_the_folder() -> None:
    assert set(page_files()) == set(TEXTS)


def test_a_deployment_can_leave_the_page_out(tmp_path: Path) -> None:
    server = Running(tmp_path, settings=ServerSettings(port=0, page=False))
    try:
        server.wait()
        for path in ("/", "/page/main.js"):
            assert server.get(path).json()["error"]["code"] == "not_found"
    finally:
        server.stop()
