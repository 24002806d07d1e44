"""How a conversation of the Isles reads as text. The template is what the exported folder carries for every server;
`render` is the same in Python, which training uses because it is faster; a test holds the two equal."""

from __future__ import annotations

import json

from armillary.world.task import Message, Tool

START, END, STOP = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
SPECIAL = (STOP, START, END)
MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
ANSWER = f"{START}assistant\n"

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
{%- if content is string -%}{{ content }}
{%- elif content is not none and content is defined -%}
{%- for part in content -%}{{ part.text if part.type == 'text' else '' }}{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- set has_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- if has_system -%}{{- text(messages[0].content) + '\\n' -}}{%- endif -%}
{{- 'Tools: ' -}}
{%- for tool in tools -%}
{%- set function = tool.function if tool.function is defined else tool -%}
{{- function.name + '(' -}}
{%- if function.parameters is defined and function.parameters.properties is defined -%}
{{- function.parameters.properties | list | join(', ') -}}
{%- endif -%}
{{- ')' -}}{%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif has_system -%}
{{- '<|im_start|>system\\n' + text(messages[0].content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and loop.first -%}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user\\n<tool_response>\\n' + text(message.content) + '\\n</tool_response><|im_end|>\\n' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' + text(message.content) -}}
{%- if message.tool_calls is defined and message.tool_calls -%}
{%- for call in message.tool_calls -%}
{%- set function = call.function if call.function is defined else call -%}
{%- if text(message.content) or not loop.first -%}{{- '\\n' -}}{%- endif -%}
{{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' -}}
{{- function.arguments if function.arguments is string else function.arguments | tojson -}}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def render(messages: list[Message], tools: list[Tool]) -> str:
    """The conversation as text, without a generation prompt. Covers what the world writes: text contents, and calls
    whose arguments are objects."""
    parts: list[str] = []
    if tools:
        offered = (f"{t['function']['name']}({', '.join(t['function']['parameters']['properties'])})" for t in tools)
        parts.append(f"{START}system\nTools: {', '.join(offered)}{END}\n")
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            role, content = "user", f"<tool_response>\n{content}\n</tool_response>"
        for call in message.get("tool_calls", ()):
            content += ("\n" if content else "") + _call(call["function"])
        parts.append(f"{START}{role}\n{content}{END}\n")
    return "".join(parts)


def _call(function: dict[str, object]) -> str:
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
