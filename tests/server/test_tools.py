"""Tools and reasoning over HTTP (behaviours 5, 6, 25, 26 and 28), on models that say what a test wants them to say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import tokenizers

from server.harness import NAME, Running, frames
from server.saying import THINK_TEMPLATE, Saying, serve_saying
from server.scripted import TEMPLATE, write_tokenizer

ASK = [{"role": "user", "content": "How high is the tide?"}]


def tool(name: str, strict: bool | None = None, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": "A tool.", "parameters": {**parameters, "additionalProperties": False}}
    return {"type": "function", "function": function if strict is None else {**function, "strict": strict}}


TIDE = tool("tide_of", harbour={"type": "string"})
CLOCK = tool("clock")
CALL = '<tool_call>\n{"name": "tide_of", "arguments": {"harbour": "Port Ellin 🏝️"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'


SAYING, THINKING, TOOLLESS = Saying(), Saying(), Saying()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve_saying(Path(tmp_path_factory.mktemp("tools")), TEMPLATE, SAYING)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    yield from serve_saying(Path(tmp_path_factory.mktemp("thinker")), THINK_TEMPLATE, THINKING)


@pytest.fixture(scope="module")
def toolless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    template = TEMPLATE.replace("{% if tools %}{{ tools | tojson }}{% endif %}", "")
    yield from serve_saying(Path(tmp_path_factory.mktemp("toolless")), template, TOOLLESS)


def chat(server: Running, says: str | None = None, **options: Any) -> Any:
    if says is not None:
        server.executor.text = says
    asked = {"model": NAME, "messages": ASK, "temperature": 0, **options}
    return server.client().chat.completions.create(**asked)


def joined(chunks: Any) -> list[dict[str, Any]]:
    """Choices as the deltas of a stream add up to, checked on the way against what clients rely on."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            mine = choices.setdefault(
                choice.index, {"content": "", "reasoning": "", "calls": [], "finish": None, "tokens": []}
            )
            assert mine["finish"] is None, "nothing comes after the end of a choice"
            delta = choice.delta
            extra = delta.model_extra or {}
            assert extra.get("reasoning") == extra.get("reasoning_content")
            mine["content"] += delta.content or ""
            mine["reasoning"] += extra.get("reasoning") or ""
            mine["finish"] = choice.finish_reason
            mine["tokens"] += (choice.logprobs.content or []) if choice.logprobs else []
            for piece in delta.tool_calls or []:
                if piece.id is not None:
                    assert piece.index == len(mine["calls"]) and piece.type == "function"
                    assert piece.function.name and not piece.function.arguments
                    mine["calls"].append({"id": piece.id, "name": piece.function.name, "arguments": ""})
                else:
                    assert piece.index == len(mine["calls"]) - 1 and piece.function.name is None
                    mine["calls"][-1]["arguments"] += piece.function.arguments
    return [choices[index] for index in sorted(choices)]


def whole(answer: Any) -> list[dict[str, Any]]:
    result = []
    for choice in answer.choices:
        message = choice.message
        calls = message.tool_calls or []
        result.append(
            {
                "content": message.content or "",
                "reasoning": (message.model_extra or {}).get("reasoning", ""),
                "calls": [{"id": c.id, "name": c.function.name, "arguments": c.function.arguments} for c in calls],
                "finish": choice.finish_reason,
                "tokens": (choice.logprobs.content or []) if choice.logprobs else [],
            }
        )
    return result


def without_ids(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**c, "calls": [{**call, "id": None} for call in c["calls"]]} for c in choices]


# ---------------------------------------------------------------- 26: calls


def test_26_a_call_comes_back_as_a_call(server: Running) -> None:
    answer = chat(server, CALL, tools=[TIDE])
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "tide_of" and call.id
    assert isinstance(call.function.arguments, str)
    assert json.loads(call.function.arguments) == {"harbour": "Port Ellin 🏝️"}


def test_26_parallel_calls_have_ids_of_their_own(server: Running) -> None:
    answer = chat(server, f"One moment.\n{CALL}\n{OTHER}", tools=[TIDE, CLOCK], n=2)
    ids = [call.id for choice in answer.choices for call in choice.message.tool_calls]
    assert len(ids) == len(set(ids)) == 4
    for choice in answer.choices:
        assert choice.message.content == "One moment." and choice.finish_reason == "tool_calls"
        assert [call.function.name for call in choice.message.tool_calls] == ["tide_of", "clock"]


def test_26_parallel_tool_calls_off_ends_the_answer_with_its_first_call(server: Running) -> None:
    before = chat(server, f"{CALL}\n{OTHER}", tools=[TIDE, CLOCK])
    for stream in (False, True):
        answer = chat(server, tools=[TIDE, CLOCK], parallel_tool_calls=False, stream=stream)
        (choice,) = joined(answer) if stream else whole(answer)
        assert [call["name"] for call in choice["calls"]] == ["tide_of"] and choice["finish"] == "tool_calls"
    cut = chat(server, tools=[TIDE, CLOCK], parallel_tool_calls=False).usage
    assert cut.completion_tokens < before.usage.completion_tokens, "what nobody wants is not computed"
    server.quiet()


@pytest.mark.parametrize(
    "says",
    [
        CALL,
        f"Let me look.\n{CALL}\n{OTHER}\n",
        f"{CALL} and more",
        '<tool_call>\n{"name": "tide_of", "arguments": {"harbour": oops}}\n</tool_call>',
        '<tool_call>\n{"name": "unknown_tool", "arguments": {}}\n</tool_call>',
        f"{CALL[:40]}",
        "No call at all: <tool_",
    ],
    ids=["call", "two", "text after", "broken", "unknown", "unfinished", "none"],
)
@pytest.mark.parametrize("options", [{}, {"logprobs": True}, {"n": 2}, {"max_tokens": 60}], ids=str)
def test_06_joined_deltas_equal_the_whole_answer(server: Running, says: str, options: dict[str, Any]) -> None:
    asked = {"tools": [TIDE, CLOCK], **options}
    complete = whole(chat(server, says, **asked))
    assert without_ids(joined(chat(server, stream=True, **asked))) == without_ids(complete)
    if "logprobs" in options:
        assert len(complete[0]["tokens"]) == len(says.encode()), "every token has its entry, once"


@pytest.mark.parametrize(
    "says",
    [
        '<tool_call>\n{"name": "tide_of", "arguments": {"harbour": oops}}\n</tool_call>',
        '<tool_call>\n{"name": "unknown_tool", "arguments": {}}\n</tool_call>',
        "<tool_call>\n",
        "Just text.",
    ],
)
def test_26_what_is_no_call_is_content(server: Running, says: str) -> None:
    (choice,) = whole(chat(server, says, tools=[TIDE]))
    assert choice["content"] == says and choice["calls"] == [] and choice["finish"] == "stop"


def test_26_a_call_that_is_held_back_does_not_let_its_client_starve(server: Running) -> None:
    """Tokens come, and nothing can be shown yet: comments go out within the time that the client waits for a byte."""
    server.executor.text, server.executor.step_s = CALL, 0.01
    try:
        body = {"model": NAME, "messages": ASK, "temperature": 0, "tools": [TIDE], "stream": True}
        answer = server.post("/v1/chat/completions", body, headers={"x-stainless-read-timeout": "0.2"})
    finally:
        server.executor.step_s = 0.0
    assert ": keep-alive" in answer.text and '"tool_calls"' in answer.text


def test_26_none_means_no_calls(server: Running) -> None:
    (choice,) = whole(chat(server, CALL, tools=[TIDE], tool_choice="none"))
    assert choice["content"] == CALL and choice["calls"] == [] and choice["finish"] == "stop"
    assert whole(chat(server, CALL))[0]["content"] == CALL, "nor where no tools are offered"


def test_05_finish_comes_once_and_is_tool_calls(server: Running) -> None:
    server.executor.text = f"{CALL}\n{OTHER}"
    body = {"model": NAME, "messages": ASK, "temperature": 0, "tools": [TIDE, CLOCK], "stream": True, "n": 2}
    events = frames(server.post("/v1/chat/completions", body))
    assert events[-1] == "[DONE]"
    choices = [choice for event in events[:-1] for choice in json.loads(event)["choices"]]
    for index in range(2):
        finishes = [choice["finish_reason"] for choice in choices if choice["index"] == index]
        assert finishes[-1] == "tool_calls" and set(finishes[:-1]) == {None}
    (choice,) = whole(chat(server, CALL, tools=[TIDE], max_tokens=20))
    assert choice["finish"] == "length" and choice["calls"] == [] and choice["content"] == CALL[:20]
    (choice,) = whole(chat(server, f"{CALL} x", tools=[TIDE], stop=["x"]))
    assert choice["finish"] == "tool_calls"


def test_26_the_stream_helper_sees_calls(server: Running) -> None:
    server.executor.text = f"Wait.\n{CALL}\n{OTHER}"
    with server.client().chat.completions.stream(
        model=NAME, messages=ASK, tools=[TIDE, CLOCK], temperature=0
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds and "content.done" in kinds
    message = final.choices[0].message
    assert message.content == "Wait." and final.choices[0].finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in message.tool_calls] == [{"harbour": "Port Ellin 🏝️"}, {}]


def test_26_the_round_trip_is_accepted(server: Running) -> None:
    reply = chat(server, CALL, tools=[TIDE]).choices[0].message
    answered = {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "2.1 m"}
    for message in (reply, reply.model_dump(), reply.model_dump(exclude_none=True)):
        final = chat(server, "2.1 metres.", tools=[TIDE], messages=[*ASK, message, answered])
        assert final.choices[0].message.content == "2.1 metres."
    # What the template writes for the call is what the model wrote, so the prefix cache knows it.
    again = chat(server, "ok", tools=[TIDE], messages=[*ASK, reply, answered], max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens > 0


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [TIDE, TIDE]}, "tools[1].function.name"),
        ({"tools": [TIDE], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [TIDE], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "tide_of"}}}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools"),
        ({"tools": [tool("f")], "tool_choice": "required", "extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools"),
        (
            {"tools": [tool("f", x={"type": "array", "uniqueItems": True})], "tool_choice": "required"},
            "tools",
        ),
        ({"tools": [tool("f", strict=True, x={"type": "object", "uniqueItems": True, "propertyNames": {}})]}, "tools"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_26_what_cannot_be_done_is_refused(server: Running, options: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(server, **options)
    assert str(caught.value.param).startswith(param)


def test_26_a_model_without_tools_says_so(toolless: Running) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(toolless, "x", tools=[TIDE])
    assert caught.value.param == "tools" and "chat template" in caught.value.message
    assert chat(toolless, "fine", tools=[TIDE], tool_choice="none").choices[0].message.content == "fine"


def test_26_marks_that_are_control_tokens_are_read(tmp_path: Path) -> None:
    """As Mistral has them: not text, but for the reader."""
    template = TEMPLATE.replace(
        "<tool_call>\n"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
        "\n</tool_call>",
        "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}",
    )
    assert template != TEMPLATE
    saying = Saying()
    write_tokenizer(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["[TOOL_CALLS]", "[ARGS]"])
    backend.save(str(tmp_path / "tokenizer.json"))
    for server in serve_saying(tmp_path, template, saying, vocab_size=261):
        says = [259, *b"tide_of", 260, *b'{"harbour": "Ellin"}']
        saying.tokens = [*b"One moment.", *says, *says]
        for stream in (False, True):
            answer = chat(server, tools=[TIDE], stream=stream)
            (choice,) = joined(answer) if stream else whole(answer)
            assert choice["content"] == "One moment." and choice["finish"] == "tool_calls"
            assert [(c["name"], c["arguments"]) for c in choice["calls"]] == [("tide_of", '{"harbour": "Ellin"}')] * 2
            assert all(len(c["id"]) == 9 and c["id"].isalnum() for c in choice["calls"]), "as its template wants them"
        (choice,) = whole(chat(server))
        assert "[TOOL_CALLS]" not in choice["content"], "where none are read, control tokens are no text"


def test_26_calls_in_a_form_that_is_not_known_are_refused(tmp_path: Path) -> None:
    template = TEMPLATE.split("{% for c in")[0] + "<|im_end|>\n{% endfor %}" + TEMPLATE.split("{% endfor %}")[-1]
    for server in serve_saying(tmp_path, template, Saying()):
        with pytest.raises(openai.BadRequestError) as caught:
            chat(server, tools=[TIDE])
        assert caught.value.param == "tools" and "hermes" in caught.value.message


# ---------------------------------------------------------------- 28: reasoning


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_28_reasoning_is_apart_under_both_names(thinker: Running, opened: bool, stream: bool) -> None:
    thought = "The moon… 🌙"
    says = f"{'' if opened else '<think>'}\n{thought}\n</think>\n\nHigh."
    options = {"extra_body": {"chat_template_kwargs": {"opened": opened}}, "stream": stream}
    if stream:
        options["stream_options"] = {"include_usage": True}
    answer = chat(thinker, says, **options)
    if stream:
        chunks = list(answer)
        (choice,), usage = joined(chunks), chunks[-1].usage
    else:
        (choice,), usage = whole(answer), answer.usage
        extra = answer.choices[0].message.model_extra
        assert extra["reasoning"] == extra["reasoning_content"] == thought
    assert (choice["reasoning"], choice["content"], choice["finish"]) == (thought, "High.", "stop")
    reasoning = usage.completion_tokens_details.reasoning_tokens
    assert reasoning == len(says.split("</think>")[0].encode()) + len("</think>")
    assert reasoning < usage.completion_tokens == len(says.encode()) + 1


def test_28_no_reasoning(thinker: Running, server: Running) -> None:
    answer = chat(thinker, "High.")
    assert "reasoning" not in answer.choices[0].message.model_extra
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    off = chat(thinker, "High <think>.", extra_body={"chat_template_kwargs": {"enable_thinking": False}})
    assert off.choices[0].message.content == "High <think>."
    effort = chat(thinker, "High <think>.", reasoning_effort="none")
    assert effort.usage.prompt_tokens == off.usage.prompt_tokens > answer.usage.prompt_tokens
    assert whole(chat(server, "<think>x</think>y"))[0]["content"] == "<think>x</think>y", "this model marks none"


def test_28_reasoning_then_a_call(thinker: Running) -> None:
    says = f"<think>I should look.</think>\n\n{CALL}"
    for stream in (False, True):
        answer = chat(thinker, says, tools=[TIDE], stream=stream)
        (choice,) = joined(answer) if stream else whole(answer)
        assert (choice["reasoning"], choice["content"]) == ("I should look.", "")
        assert [call["name"] for call in choice["calls"]] == ["tide_of"] and choice["finish"] == "tool_calls"


def test_28_reasoning_that_is_cut(thinker: Running) -> None:
    (choice,) = whole(chat(thinker, "<think>I should look.</think>", max_tokens=15))
    assert (choice["reasoning"], choice["content"], choice["finish"]) == ("I should", "", "length")


def test_28_the_reasoning_of_earlier_turns_is_accepted(thinker: Running) -> None:
    reply = chat(thinker, "<think>Hm.</think>High.").choices[0].message
    assert chat(thinker, "Yes.", messages=[*ASK, reply, *ASK]).choices[0].message.content == "Yes."
