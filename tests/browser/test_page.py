"""The page in a real browser: Debian's Chromium, driven by Playwright. Screenshots are kept under build/page.

Skipped where there is no Chromium; `ARMILLARY_BROWSER=required`, which `.ci/run` sets where it could install one,
makes that a failure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from armillary.deployment import ServerSettings
from server.harness import NAME, Running, ScriptedExecutor

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "page"
MARKUP = (
    "<img src=x onerror='window.hacked=1'> **bold** <script>window.hacked=2</script> [x](javascript:window.hacked=3) . "
)
DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
REPLY = ".message.assistant:not(.live)"
QUIET = "document.querySelectorAll('.message.live').length === 0"
FOCUSED = "document.activeElement.id"
MAP_HAS_COLOURS = """() => {
  const canvas = document.getElementById("kv-map");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const seen = new Set();
  for (let at = 0; at < data.length; at += 4) seen.add((data[at] << 16) | (data[at + 1] << 8) | data[at + 2]);
  return seen.size > 4;
}"""
NAMELESS = """() => [...document.querySelectorAll("button, input, select, textarea, canvas, a, dialog, summary")]
  .filter((node) => !(node.getAttribute("aria-label") || node.getAttribute("aria-labelledby")
    || [...(node.labels ?? [])].some((label) => label.textContent.trim()) || node.textContent.trim() || node.title))
  .map((node) => node.outerHTML)"""
Open = Callable[..., Any]
PATIENCE_S = 120.0
"""How long anything is waited for: a machine that builds and tests much else at once is slow, not wrong."""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    try:
        if (program := chromium()) is None:
            raise ImportError("Chromium must be on the path, found none; on Debian it is the package chromium")
        from playwright.sync_api import sync_playwright
    except ImportError as missing:
        if os.environ.get("ARMILLARY_BROWSER") == "required":
            raise
        pytest.skip(f"no browser: {missing}")
    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def isles(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bundled model, served as anybody would."""
    command = [sys.executable, "-m", "armillary", "serve", "--port", "0"]
    said = tmp_path_factory.mktemp("isles") / "said"  # a pipe that nobody empties would stop the server one day
    with said.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    try:
        while not (found := re.search(r"curl (http://\S+)/v1/", said.read_text())):
            assert process.poll() is None, said.read_text()
            time.sleep(0.1)
        yield found[1]
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def scripted(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a key whose model writes markup, a character a token."""
    executor = ScriptedExecutor(MARKUP, step_s=0.002)
    settings = ServerSettings(port=0, api_keys=("s3cret",), drain_s=1.0)
    server = Running(tmp_path_factory.mktemp("scripted"), executor, settings)
    server.wait()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def desk(browser: Any) -> Any:
    """The page that most tests share: a new one each would take twice the time."""
    return browser.new_context(viewport=DESK).new_page()


@pytest.fixture
def visit(browser: Any, desk: Any) -> Iterator[Open]:
    """Opens the page, and holds it to no console error and no other host when the test is over."""
    closing: list[Callable[[], object]] = []
    told: list[str] = []
    hosts: set[str] = set()
    own: set[str] = set()

    def begin(url: str, key: str | None = None, expect: str = "$^", scheme: str = "light", **options: Any) -> Any:
        page = browser.new_context(**options).new_page() if options else desk
        if options:
            closing.append(page.context.close)
        page.set_default_timeout(PATIENCE_S * 1000)
        allowed = re.compile(expect)

        def hear(message: Any) -> None:
            text = f"{message.text} {message.location['url']}"
            if message.type == "error" and not allowed.search(text):
                told.append(text)

        listeners: dict[str, Callable[[Any], object]] = {
            "console": hear,
            "pageerror": lambda error: told.append(str(error)),
            "request": lambda request: hosts.add(re.sub(r"^(\w+://[^/]+).*", r"\1", request.url)),
        }
        for event, listener in listeners.items():
            page.on(event, listener)
            closing.append(partial(page.remove_listener, event, listener))
        own.add(url)
        page.goto(f"{url}/page/icon.svg")  # a place from which to reach the storage
        page.evaluate("localStorage.clear(), sessionStorage.clear()")
        if key is not None:
            page.evaluate("(key) => sessionStorage.setItem('armillary.key', key)", key)
        page.emulate_media(color_scheme=scheme)
        page.goto(url)
        if not allowed.search("status of 401"):
            page.wait_for_selector("#health[data-state=ready]")
        return page

    yield begin
    for close in closing:
        close()
    desk.unroute_all(behavior="ignoreErrors")
    desk.goto("about:blank")
    assert told == [], "the console must stay empty"
    assert hosts <= own, "the page must talk to its own server only"


def ask(page: Any, text: str) -> Any:
    """Send by the keyboard; returns the finished reply."""
    before = page.locator(".message.assistant").count()
    page.locator("#prompt").fill(text)
    page.locator("#prompt").press("Enter")
    page.locator(".message.assistant").nth(before).wait_for()
    until(page, QUIET)
    return page.locator(".message.assistant").last


def until(page: Any, condition: str, argument: Any = None, seconds: float = PATIENCE_S) -> Any:
    """What the condition gives in the page once it holds.

    Whatever a press of a key or a button leads to is waited for: some of it happens in a later turn of the page.
    Playwright's own wait needs `eval`, which the page's policy forbids.
    """
    end = time.monotonic() + seconds
    while not (held := page.evaluate(condition, argument)):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        page.wait_for_timeout(30)
    return held


def narrow_enough(page: Any) -> bool:
    return page.evaluate(
        "[document.documentElement, ...document.querySelectorAll('main > section:not([hidden]), dialog[open]')]"
        ".every((node) => node.scrollWidth <= node.clientWidth)"
    )


def stop_load(page: Any) -> None:
    """Unless it is over by itself, half a minute after its begin: the same button would begin another."""
    page.evaluate("button => /^Stop/.test(button.textContent) && button.click()", page.query_selector("#load-button"))


def counters(url: str) -> dict[str, Any]:
    return dict(httpx.get(f"{url}/v1/engine", timeout=PATIENCE_S).json()["counters"])


def test_a_chat_with_the_bundled_model_by_keyboard_alone(visit: Open, isles: str) -> None:
    page = visit(isles)
    keys = page.keyboard
    assert page.evaluate(FOCUSED) == "prompt", "one can type at once"
    passed: list[str] = []
    while "skip" not in passed and len(passed) < 20:
        keys.press("Shift+Tab")
        passed.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    assert passed[-1] == "skip" and {"model", "key-button", "theme-button", "conversation"} <= set(passed)
    for _ in passed:
        keys.press("Tab")
    assert page.evaluate(NAMELESS) == [], "every control says what it is"
    keys.type("Hello!")
    keys.press("Enter")
    page.wait_for_selector(f"{REPLY} .cost:text(' out')")
    assert page.locator(f"{REPLY} .text").inner_text().strip()
    assert page.evaluate(FOCUSED) == "prompt", "one can go on typing"
    for _ in range(3):  # back over "new chat" and the conversation to the buttons of the reply
        keys.press("Shift+Tab")
        if page.evaluate("document.activeElement.closest('.message') !== null"):
            break
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Timeline of this reply"
    keys.press("Enter")
    page.wait_for_selector("#timeline-dialog[open] .phase-bar")
    keys.press("Escape")
    page.wait_for_selector("#timeline-dialog", state="hidden")
    assert page.locator("#chat-view").is_visible()
    page.screenshot(path=SHOTS / "chat.png")


def test_regenerate_edit_and_options(visit: Open, isles: str) -> None:
    page = visit(isles, expect="status of 404 .*/v1/requests/%25/timeline$")
    page.fill("#set-temperature", "1.5")
    page.fill("#set-seed", "7")
    page.fill("#set-max_tokens", "12")
    first = ask(page, "Tell me something.").locator(".text").inner_text()
    page.get_by_label("Regenerate").click()
    page.wait_for_selector(f"{REPLY} .actions >> nth=0")
    assert page.locator(".message.assistant").count() == 1
    assert page.locator(f"{REPLY} .text").inner_text() == first, "the same seed, the same reply"
    page.locator(".message.user").hover()
    page.get_by_label("Edit and send again").click()
    page.get_by_label("Edit the message").fill("Something else, please.")
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_label("Edit the message").press("Enter")
    body = sent.value.post_data_json
    assert [message["content"] for message in body["messages"]] == ["Something else, please."]
    assert (body["temperature"], body["seed"], body["max_tokens"], body["stream"]) == (1.5, 7, 12, True)
    assert "top_p" not in body, "what is left empty is not sent"
    page.wait_for_selector(REPLY)
    page.reload()
    assert page.input_value("#set-seed") == "7", "settings are remembered"
    page.locator("summary", has_text="Request as sent").click()
    page.wait_for_selector("#health[data-state=ready]")
    preview = json.loads(until(page, "document.querySelector('.preview').textContent"))
    assert preview["seed"] == 7 and preview["messages"] == [] and preview["model"] == page.input_value("#model")
    page.fill("#set-seed", "8")
    assert json.loads(page.locator(".preview").inner_text())["seed"] == 8
    ask(page, "Hello!")
    assert json.loads(page.locator(".preview").inner_text())["messages"][0] == {"role": "user", "content": "Hello!"}
    page.get_by_role("button", name="Copy as curl").click()
    page.wait_for_selector("#toast:visible")
    page.evaluate("localStorage.setItem('armillary.settings', '{broken')")
    page.goto(f"{isles}/#/request/%")
    page.reload()
    page.wait_for_selector("#health[data-state=ready]")  # nonsense in storage or address does not keep the page away


def test_token_probabilities_on_hover_and_by_arrow_keys(visit: Open, isles: str) -> None:
    page = visit(isles, scheme="dark")
    page.check("#set-logprobs")
    reply = ask(page, "What is 17 + 25?")
    reply.locator(".token").first.hover()
    card = page.locator("#card")
    card.locator("li >> nth=4").wait_for()
    assert "%" in card.inner_text() and "logprob" in card.inner_text()
    page.screenshot(path=SHOTS / "tokens-dark.png")
    reply.locator(".tokens").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".token.active[data-at='1']")
    assert "%" in page.locator("#said").inner_text(), "who cannot see the card is told"
    reply.get_by_label("Show as text").click()
    reply.locator(".text").wait_for()


def test_the_live_view_moves_under_load_and_a_click_leads_to_a_timeline(visit: Open, isles: str) -> None:
    page = visit(isles)
    page.get_by_role("link", name="Engine").click()
    page.wait_for_selector("#kv-legend li")
    before = counters(isles)["generated_tokens"]
    page.click("#load-button:text('Make some load')")
    until(page, "Number(document.querySelector('#tiles dd').textContent) > 1")
    until(page, MAP_HAS_COLOURS)
    steps = page.locator("#step-canvas").get_attribute("aria-label")
    until(page, "(old) => document.getElementById('step-canvas').ariaLabel !== old", steps)
    page.wait_for_selector("#requests tbody .pill.live")
    time.sleep(2)  # for the charts of the picture
    page.screenshot(path=SHOTS / "engine.png")
    page.get_by_label("by sharing").check()
    page.locator("#kv-map").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("#card:has-text('Block')")
    page.locator("#requests tbody a").last.click()
    page.wait_for_selector("#timeline-dialog[open] .phase-bar[aria-label*=decode i]")  # it may have just begun
    assert page.locator("#timeline-dialog table.phases tr").count() > 2
    assert "/request/" in page.url
    page.screenshot(path=SHOTS / "timeline.png")
    page.go_back()
    page.wait_for_selector("#timeline-dialog", state="hidden")
    stop_load(page)
    until(page, "document.querySelector('#tiles dd').textContent === '0'")
    assert counters(isles)["generated_tokens"] > before
    page.click("#pause-button")
    page.wait_for_selector("#pause-button[aria-pressed=true]")


def test_dark_and_light_by_the_system_and_by_the_button(visit: Open, isles: str) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    is_paper = f"(colour) => {paper} === colour"
    page = visit(isles)
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    dark = until(page, f"(light) => {paper} !== light && {paper}", light)
    page.click("#theme-button")
    until(page, is_paper, light)
    page.reload()
    assert page.evaluate(paper) == light, "the choice is remembered"
    for choice in ("dark", "system"):
        page.click("#theme-button")
        page.wait_for_selector(f"#theme-label:text('{choice}')", state="attached")
        until(page, is_paper, dark)
    page.get_by_role("link", name="Engine").click()
    page.wait_for_selector("#kv-legend li")
    page.wait_for_selector("#requests tbody tr")
    page.screenshot(path=SHOTS / "engine-dark.png")


def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit: Open, isles: str) -> None:
    page = visit(isles, viewport=PHONE, has_touch=True, is_mobile=True, reduced_motion="reduce")
    ask(page, "Hello!")
    assert narrow_enough(page)
    page.screenshot(path=SHOTS / "phone-chat.png")
    page.get_by_role("button", name="Settings").tap()
    page.wait_for_selector("#settings.open")
    until(page, "document.activeElement.closest('#settings') !== null")
    page.locator("#set-temperature").wait_for()
    assert narrow_enough(page)
    page.get_by_label("Close the settings").tap()
    until(page, f"{FOCUSED} === 'settings-button'")
    page.get_by_role("link", name="Engine").tap()
    page.wait_for_selector("#requests tbody tr")
    assert narrow_enough(page)
    page.screenshot(path=SHOTS / "phone-engine.png")
    page.locator("#requests tbody a").first.tap()
    page.wait_for_selector("#timeline-dialog[open] .phase-bar")
    assert narrow_enough(page)
    page.screenshot(path=SHOTS / "phone-timeline.png")


def test_a_key_is_asked_for_and_kept_in_this_tab_only(visit: Open, scripted: Running) -> None:
    page = visit(scripted.url, expect="status of 401")
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key-input", "wrong")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('key-why').textContent.includes('wrong one')")
    page.fill("#key-input", "s3cret")
    page.keyboard.press("Enter")
    page.wait_for_selector("#health[data-state=ready]")
    assert page.input_value("#model") == NAME
    assert page.evaluate("sessionStorage.getItem('armillary.key')") == "s3cret"
    assert "s3cret" not in page.evaluate("JSON.stringify(localStorage)")


def test_several_models_and_one_that_sleeps(visit: Open, scripted: Running) -> None:
    cards = [{"id": "awake", "state": "ready"}, {"id": "asleep", "state": "sleeping"}]
    woken: list[Any] = []

    def wake(route: Any) -> None:
        woken.append(route.request.post_data_json)
        cards[1]["state"] = "ready"
        route.fulfill(json=cards[1])

    page = visit(scripted.url, key="s3cret", expect="ERR_FAILED")
    page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": cards}))
    page.route("**/v1/models/wake", wake)
    page.reload()
    page.wait_for_selector("#model option >> nth=1", state="attached")
    assert page.locator("#model option").all_inner_texts() == ["awake", "asleep (sleeping)"]
    page.select_option("#model", "asleep")
    page.get_by_role("button", name="Wake it").click()
    page.wait_for_selector("#health[data-state=ready]")
    assert woken == [{"model": "asleep"}] and not page.locator("#banner").is_visible()
    page.route("**/v1/chat/completions", lambda route: route.abort())
    with page.expect_request("**/v1/chat/completions") as sent:
        page.fill("#prompt", "Hello")
        page.press("#prompt", "Enter")
    assert sent.value.post_data_json["model"] == "asleep"


def test_stop_ends_the_request_in_the_engine_too(
    visit: Open, scripted: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit(scripted.url, key="s3cret")
    steps = count()
    # After a few words it goes on for minutes: it must not be over before a slow browser has stopped it.
    monkeypatch.setattr(scripted.executor, "fault", lambda step: time.sleep(0.5) if next(steps) > 20 else None)
    page.fill("#prompt", "Go on and on.")
    page.click("#send-button")
    until(page, "document.querySelector('.message.assistant .text').textContent.length > 10")
    page.click("#stop-button")
    page.wait_for_selector(f"{REPLY} .cost:text('stopped')")
    scripted.quiet(PATIENCE_S)
    assert page.locator("#send-button").is_visible()
    assert page.evaluate(FOCUSED) == "prompt"


def test_a_model_that_is_gone_is_never_asked(visit: Open, scripted: Running) -> None:
    """The choice of the last visit holds only once the server has said that there is such a model."""
    page = visit(scripted.url, key="s3cret")
    page.evaluate("localStorage.setItem('armillary.model', 'of yesterday')")
    held: list[Any] = []
    asked: list[str] = []
    hold = True

    def models(route: Any) -> None:
        if hold:
            held.append(route)
        else:
            route.continue_()

    page.route("**/v1/models", models)
    page.on("request", remember := lambda request: asked.append(request.url))
    page.reload()
    page.fill("#set-max_tokens", "3")
    page.fill("#prompt", "Hello")
    page.press("#prompt", "Enter")
    page.get_by_role("link", name="Engine").click()
    page.wait_for_selector("#engine-view:visible")
    page.click("#load-button")
    page.wait_for_timeout(300)  # in which nothing may happen
    page.click("#load-button:text('Stop')")
    assert not [url for url in asked if "/v1/" in url and not url.endswith("/v1/models")]
    hold = False
    for route in held:
        route.continue_()
    page.wait_for_selector("#kv-legend li")
    page.wait_for_selector("#requests tbody tr")
    page.get_by_role("link", name="Playground", exact=True).click()
    page.wait_for_selector(f"{REPLY} .cost:text('3 out')")
    assert [url for url in asked if "/v1/engine/stream" in url and f"model={quote(NAME, safe='')}" in url]
    assert len([url for url in asked if url.endswith("/v1/chat/completions")]) == 1, "no load that was stopped"
    page.remove_listener("request", remember)


def test_markup_in_a_reply_stays_text(visit: Open, scripted: Running) -> None:
    page = visit(scripted.url, key="s3cret")
    page.fill("#set-temperature", "0")
    page.fill("#set-max_tokens", str(len(MARKUP)))
    reply = ask(page, "<b>Hello</b>").locator(".text")
    assert "<img src=x onerror='window.hacked=1'>" in reply.inner_text()
    assert page.locator(".message strong").inner_text() == "bold", "Markdown is shown as such"
    assert page.locator(".message img, .message script, .message a[href^=javascript], .message b").count() == 0
    page.check("#set-logprobs")
    ask(page, "Again.")
    assert page.locator(".tokens img, .tokens script").count() == 0
    assert page.evaluate("window.hacked") is None


def test_a_refusal_is_shown_in_the_words_of_the_server(visit: Open, scripted: Running) -> None:
    page = visit(scripted.url, key="s3cret", expect="status of 400")
    page.fill("#set-temperature", "3")
    problem = ask(page, "Hello").locator(".problem")
    assert "temperature" in problem.inner_text() and "status 400" in problem.inner_text()
    assert page.get_attribute("#set-temperature", "aria-invalid") == "true"
    page.fill("#set-temperature", "0")
    assert page.get_attribute("#set-temperature", "aria-invalid") is None
    page.fill("#set-max_tokens", "5")
    problem.get_by_role("button", name="Try again").click()
    page.wait_for_selector(f"{REPLY} .text")
    assert page.locator(".message .problem").count() == 0


def test_tools_schema_and_reasoning(visit: Open, scripted: Running) -> None:
    """What is sent, and what is made of an answer; the answers are made up here, so that they are the same always."""
    bodies: list[dict[str, Any]] = []

    def answer(route: Any) -> None:
        bodies.append(route.request.post_data_json)
        call = {"index": 0, "id": "call_1", "function": {"name": "get_weather", "arguments": '{"pla'}}
        deltas = [
            {"role": "assistant", "content": ""},
            {"reasoning_content": "Let me <i>think</i>."},
            {"tool_calls": [call]},
            {"tool_calls": [{"index": 0, "function": {"arguments": 'ce": "Oriel"}'}}]},
        ]
        if len(bodies) > 1:
            deltas = [{"content": '{"sky": "clear"}'}]
        reasons = [None] * len(deltas) + ["tool_calls" if len(bodies) == 1 else "stop"]
        choices = [{"index": 0, "delta": d, "finish_reason": r} for d, r in zip([*deltas, {}], reasons, strict=True)]
        events = [json.dumps({"id": "chatcmpl-1", "choices": [choice]}) for choice in choices]
        text = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
        route.fulfill(content_type="text/event-stream", body=text)

    page = visit(scripted.url, key="s3cret")
    page.route("**/v1/chat/completions", answer)
    page.locator("summary", has_text="Tools").click()
    page.check("#set-use_tools")
    page.fill("#set-tool_choice", "get_weather")
    page.locator("summary", has_text="Format").click()
    page.select_option("#set-response_format", "json_schema")
    page.fill("#set-schema", "{")
    assert "must be JSON" in ask(page, "The weather in Oriel?").inner_text(), "a slip is caught before it is sent"
    assert bodies == []
    page.fill("#set-schema", '{"type": "object"}')
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".call textarea:visible")
    assert bodies[0]["tools"][0]["function"]["name"] == "get_weather"
    assert bodies[0]["tool_choice"] == {"type": "function", "function": {"name": "get_weather"}}
    assert bodies[0]["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert json.loads(page.locator(".call pre").inner_text()) == {"place": "Oriel"}
    thought = page.locator(".thought")
    assert not thought.is_visible(), "reasoning is folded"
    page.locator(".reasoning summary").click()
    assert thought.inner_text() == "Let me <i>think</i>."
    page.fill(".call textarea", '{"sky": "clear"}')
    page.screenshot(path=SHOTS / "tools.png")
    page.get_by_role("button", name="Send results").click()
    page.wait_for_selector(".message.assistant >> nth=1")
    until(page, QUIET)
    roles = [message["role"] for message in bodies[1]["messages"]]
    assert roles == ["user", "assistant", "tool"]
    assert bodies[1]["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"place": "Oriel"}'
    assert bodies[1]["messages"][2] == {"role": "tool", "tool_call_id": "call_1", "content": '{"sky": "clear"}'}
    page.select_option("#set-response_format", "choice")
    page.fill("#set-rule", "yes\nno")
    ask(page, "Is it clear?")
    assert bodies[2]["structured_outputs"] == {"choice": ["yes", "no"]} and "response_format" not in bodies[2]
