"""The form of calls and the marks of reasoning are found out from chat templates, each written here in the manner
of its family."""

from __future__ import annotations

import json
from typing import Any

import pytest

from armillary.errors import ArmillaryError, Code
from armillary.models.calls.choose import FORMATS, reply_format
from armillary.models.chat import ChatTemplate

SYSTEM = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
END = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(call: str, end: str = END) -> str:
    """A template in ChatML whose assistant writes its calls so."""
    return (
        SYSTEM + "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
        "{% if m.tool_calls %}{% for c in m.tool_calls %}{% set f = c.function %}" + call + "{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}" + end
    )


HERMES = chatml('\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>')
QWEN3 = chatml(
    '\n<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}\n</tool_call>',
    END + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
)
CODER = chatml(
    "\n<tool_call>\n<function={{ f.name }}>\n{% for k, v in f.arguments | items %}<parameter={{ k }}>\n"
    "{{ v }}\n</parameter>\n{% endfor %}</function>\n</tool_call>"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{% if tools and loop.first %}{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}"
    '{% set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
    "{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
MISTRAL_HEAD = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools %}[AVAILABLE_TOOLS] {{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]"
    "{% elif m.tool_calls is defined %}"
)
MISTRAL_TAIL = "{{ eos_token }}{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
MISTRAL = (
    MISTRAL_HEAD + "[TOOL_CALLS] [{% for c in m.tool_calls %}{% set out = c.function | tojson %}{{ out[:-1] }}"
    "{% if c.id is not defined or c.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}"
    ', "id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]' + MISTRAL_TAIL
)
MISTRAL_ARGS = (
    MISTRAL_HEAD + "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}" + MISTRAL_TAIL
)
PHI = (
    "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' + '<|end|>' }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
GEMMA_TOOLS = (
    "{% for t in tools or [] %}<start_function_declaration>declaration:{{ t.function.name }}"
    "<end_function_declaration>{% endfor %}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}<start_function_call>call:{{ c.function.name }}{{ '{' }}"
    "{% for k, v in c.function.arguments | items %}{{ k }}:{% if v is string %}<escape>{{ v }}<escape>"
    "{% else %}{{ v }}{% endif %}{% if not loop.last %},{% endif %}{% endfor %}}<end_function_call>{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = QWEN3.replace(
    "{% if add_generation_prompt %}<|im_start|>assistant\n",
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n",
)
SHY = SYSTEM + "{# calls are written as <tool_call> with <function= inside #}" + END
R1 = (
    "{{ bos_token }}{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}"
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"})


@pytest.mark.parametrize(
    ("source", "calls", "marks", "tools"),
    [
        (HERMES, "hermes", None, "variable"),
        (QWEN3, "hermes", "think", "variable"),
        (THINKING, "hermes", "think", "variable"),
        (SHY, "qwen_tags", None, "variable"),
        (CODER, "qwen_tags", None, "variable"),
        (LLAMA3, "llama3", None, "variable"),
        (MISTRAL, "mistral", None, "variable"),
        (MISTRAL_ARGS, "mistral_args", None, "variable"),
        (PHI, "phi", None, "system"),
        (GEMMA_TOOLS, "gemma", None, "variable"),
        (GEMMA, None, None, "none"),
        (R1, None, "think", "none"),
        (SYSTEM + END, None, None, "variable"),
    ],
    ids=[
        "hermes",
        "qwen3",
        "thinking",
        "shy",
        "coder",
        "llama3",
        "mistral",
        "args",
        "phi",
        "function_gemma",
        "gemma",
        "r1",
        "unknown",
    ],
)
def test_26_the_format_is_what_the_template_writes(
    source: str, calls: str | None, marks: str | None, tools: str
) -> None:
    found = reply_format(template(source))
    assert (found.calls.name if found.calls else None) == calls
    assert (found.marks.name if found.marks else None) == marks
    assert found.tools == tools


def test_the_deployment_can_say_otherwise() -> None:
    assert reply_format(template(HERMES), "none").tools == "none"
    forced = reply_format(template(SYSTEM + END), "mistral", "magistral")
    assert forced.calls is FORMATS["mistral"] and forced.marks is not None and forced.marks.opening == "[THINK]"
    assert reply_format(template(QWEN3), reasoning="none").marks is None
    for given in ({"calls": "morse"}, {"reasoning": "morse"}):
        with pytest.raises(ArmillaryError, match="morse") as caught:
            reply_format(template(HERMES), **given)
        assert caught.value.code is Code.INVALID_DEPLOYMENT
    assert reply_format(None).tools == "none"


def test_what_is_found_is_said() -> None:
    assert "hermes" in reply_format(template(QWEN3)).describe() and "think" in reply_format(template(QWEN3)).describe()
    assert "no tools" in reply_format(template(GEMMA)).describe()


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
TALK: list[dict[str, Any]] = [
    {"role": "user", "content": "When?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a1B2c3D4e", "type": "function", "function": {"name": "tide", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "a1B2c3D4e", "content": "noon"},
]


def test_a_template_that_passes_calls_over_gets_them_in_the_content() -> None:
    """Phi-4-mini: tools come in the system message, and calls not at all."""
    phi = reply_format(template(PHI))
    messages, tools = phi.conversation(TALK, [TOOL])
    text = template(PHI).render(messages, tools)
    assert '<|tool|>[{"name": "tide"' in text and tools is None
    assert '<|assistant|><|tool_call|>[{"name": "tide", "arguments": {}}]<|/tool_call|><|end|>' in text
    parts = [{"role": "assistant", "content": [{"type": "text", "text": "Wait."}], "tool_calls": TALK[1]["tool_calls"]}]
    assert "Wait.\n<|tool_call|>" in template(PHI).render(phi.conversation(parts, None)[0])
    own, _ = phi.conversation([{"role": "system", "content": "Mine."}, *TALK], [TOOL])
    assert own[0]["content"] == "Mine." and json.loads(own[0]["tools"])[0]["name"] == "tide"
    plain, none = reply_format(template(HERMES)).conversation(TALK, [TOOL])
    assert plain == TALK and none == [TOOL]


def test_26_tools_that_the_model_would_not_see_are_refused() -> None:
    with pytest.raises(ArmillaryError, match="tools must be left out") as caught:
        reply_format(template(GEMMA)).conversation(TALK[:1], [TOOL])
    assert caught.value.code is Code.INVALID_REQUEST and caught.value.param == "tools"
