"""`run_bench` against a real socket: report, JSON, page, and what is refused."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
import uvicorn
from pydantic import ValidationError
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from armillary.errors import ArmillaryError, Code
from armillary.measure.bench import BenchOptions, run_bench
from armillary.measure.page import html
from armillary.measure.plots import BOTTOM, HEIGHT, LEFT, WIDTH
from armillary.measure.prompts import Calibration, Prompts
from armillary.measure.report import Report
from armillary.measure.table import show
from armillary.measure.workload import Workload

STAMPS: dict[str, dict[str, float]] = {}


async def models(request: Request) -> JSONResponse:
    return JSONResponse({"data": [{"id": "fake</script><b>"}]})


async def completions(request: Request) -> StreamingResponse | JSONResponse:
    body = await request.json()
    if request.headers.get("authorization") == "Bearer wrong":
        return JSONResponse({"error": {"message": "who are you"}}, 401)
    stamps = STAMPS.setdefault(body["prompt"], {"received": time.monotonic()})
    prompt_tokens = 2 * len(body["prompt"].split())
    if prompt_tokens == 14:
        return JSONResponse({"error": {"message": "busy"}}, 429)

    async def stream() -> AsyncIterator[str]:
        await asyncio.sleep(0.02)
        for index in range(body["max_tokens"]):
            if index:
                await asyncio.sleep(0.01)
            stamps[f"token {index}"] = time.monotonic()
            finish = "length" if index == body["max_tokens"] - 1 else None
            yield f"data: {json.dumps({'choices': [{'text': ' x', 'finish_reason': finish}]})}\n\n"
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": body["max_tokens"]}
        yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"

    return StreamingResponse(stream(), media_type="text/event-stream")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    app = Starlette(routes=[Route("/v1/models", models), Route("/v1/completions", completions, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)


@pytest.fixture(scope="module")
def report(url: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("bench")
    STAMPS.clear()
    made = run_bench(
        BenchOptions(
            url=url, requests=40, rate=60.0, prompt_length="uniform:12,16", output_length="uniform:1,6", seed=4,
            api_key="secret-key", slo="ttft p95 1000s", json_path=folder / "r.json", html_path=folder / "r.html",
            save_workload=str(folder / "w.jsonl"), title="A <b>title</b>",
        ),
        Console(file=StringIO()),
    )  # fmt: skip
    return made, folder


def test_the_report_covers_every_request(report: tuple[Report, Path]) -> None:
    made, folder = report
    workload = Workload.read(folder / "w.jsonl")
    assert len(made.records) == 40 == made.summary.requests
    for item, record in zip(workload.items, made.records, strict=True):
        assert record.due == item.arrival
        if record.ok:
            assert record.output_tokens == item.output_tokens
            assert len(record.gaps) <= item.output_tokens - 1
            assert abs((record.prompt_tokens or 0) - item.prompt_tokens) <= 1
        else:
            assert record.status == 429
    shed = made.summary.outcomes.get("shed", 0)
    assert 0 < shed < 40
    assert made.summary.outcomes["ok"] == 40 - shed
    assert made.summary.goodput.good == 40 - shed
    assert made.calibration == {"base": 0.0, "per_word": 2.0}


def test_the_clients_stamps_enclose_the_servers(report: tuple[Report, Path]) -> None:
    """Order of events, on the one clock that both ends read; no bound on how long anything took."""
    made, folder = report
    checked = 0
    prompts = Prompts(Workload.read(folder / "w.jsonl"), Calibration(0.0, 2.0), seed=4)
    for row, record in enumerate(made.records):
        if not record.ok:
            continue
        stamps = STAMPS[prompts.text(row)]
        tokens = [when for name, when in stamps.items() if name.startswith("token")]
        assert record.first is not None
        assert record.end is not None
        assert len(tokens) == record.output_tokens
        assert record.first - record.sent >= tokens[0] - stamps["received"] - 1e-6
        assert record.end - record.sent >= tokens[-1] - stamps["received"] - 1e-6
        assert record.first - record.due >= 0.02
        checked += 1
    assert checked == made.summary.outcomes["ok"]


def test_json_round_trip(report: tuple[Report, Path], tmp_path: Path) -> None:
    made, folder = report
    assert Report.load(folder / "r.json") == made
    made.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (folder / "r.json").read_bytes()
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(ArmillaryError, match="written by a bench run"):
        Report.load(tmp_path / "bad.json")


def test_the_key_is_saved_nowhere(report: tuple[Report, Path]) -> None:
    for path in report[1].iterdir():
        assert b"secret-key" not in path.read_bytes()


class Checker(HTMLParser):
    """Collects tags, and every attribute that could load something."""

    VOID = frozenset({"meta", "br", "line", "i"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            f"{tag} {k}={v}" for k, v in attrs if k in {"src", "href", "action", "srcset", "data", "xlink:href"}
        ]
        if tag not in {"meta", "br", "line"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else(report: tuple[Report, Path]) -> None:
    made, folder = report
    page = (folder / "r.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert checker.loads == []
    assert not re.search(r"@import|url\(|<link|<iframe|<img", page)
    style = page.split("<style>")[1].split("</style>")[0]
    assert "http" not in style
    assert "prefers-color-scheme:dark" in style
    assert checker.tags.count("svg") == 5
    for svg in re.findall(r"<svg.*?</svg>", page, re.S):
        for path in re.findall(r' d="([^"]+)"', svg):
            for letters, numbers in re.findall(r"([MLHV])([^MLHV]+)", path):
                found = [float(number) for number in numbers.split()]
                across, down = (
                    (found[:1], found[1:]) if letters in "ML" else (found, []) if letters == "H" else ([], found)
                )
                assert all(LEFT <= x <= WIDTH for x in across), "a curve leaves its plot"
                assert all(0 <= y <= HEIGHT - BOTTOM for y in down), "a curve leaves its plot"
    assert "A <b>title</b>" in checker.text, "names are text, not markup"
    embedded = page.split('id="report">')[1].split("</script>")[0]
    assert Report.model_validate_json(embedded) == made


def test_the_page_and_the_table_cope_with_a_run_in_which_everything_failed(url: str) -> None:
    made = run_bench(BenchOptions(url=url, model="m", requests=3, prompt_length="14", warmup=0))
    assert made.summary.outcomes == {"shed": 3}
    checker = Checker()
    checker.feed(html(made))
    assert checker.open == []
    show(made, Console(file=StringIO()))


def test_the_table_shows_the_figures(report: tuple[Report, Path]) -> None:
    out = StringIO()
    show(report[0], Console(file=out, width=140))
    for word in ("TTFT", "TPOT", "ITL", "e2e", "p99", "goodput", "steady state", "429"):
        assert word in out.getvalue()


def test_a_recorded_workload_is_sent_as_it_is(report: tuple[Report, Path], url: str) -> None:
    _, folder = report
    again = run_bench(BenchOptions(url=url, workload=str(folder / "w.jsonl"), seed=4))
    assert [r.due for r in again.records] == [r.due for r in report[0].records]
    with pytest.raises(ArmillaryError, match="a file and also users"):
        run_bench(BenchOptions(url=url, workload=str(folder / "w.jsonl"), users=3))


def test_what_cannot_work_is_said(url: str) -> None:
    with pytest.raises(ArmillaryError, match="lists a model") as nobody:
        run_bench(BenchOptions(url="http://127.0.0.1:9", requests=1))
    assert nobody.value.code is Code.UNREACHABLE
    with pytest.raises(ArmillaryError, match="who are you"):
        run_bench(BenchOptions(url=url, requests=1, api_key="wrong"))
    for bad in ({"requests": 0}, {"rate": -1}, {"colour": 1}, {"users": 0}, {"prefix_share": 2}):
        with pytest.raises(ValidationError):
            BenchOptions(**bad)  # type: ignore[arg-type]
    with pytest.raises(ArmillaryError, match="both be above 0"):
        run_bench(BenchOptions(url=url, prefixes=2))


def test_every_option_is_documented() -> None:
    assert all(field.description for field in BenchOptions.model_fields.values())
