"""The model card, written from what was measured."""

from __future__ import annotations

from typing import Any

from armillary.models.spec import ModelSpec

TARGETS = {
    "reading": 0.85,
    "addition": 0.95,
    "subtraction": 0.95,
    "sorting": 0.95,
    "reversing": 0.95,
    "extraction": 0.90,
    "tools": 0.90,
    "dialogue": 0.80,
}
"""Levels aimed at on held-out tasks."""

_CARD = """\
---
license: apache-2.0
pipeline_tag: text-generation
tags: [synthetic, tiny]
---

# Isles

A decoder of {parameters:.2f} million parameters (Qwen3 architecture, {layers} layers, {hidden} wide, vocabulary of \
{vocab}), trained from scratch on text of the Isles, a small synthetic world. It exists so that a serving system can be
started, tested and measured on a real model that fits in a repository and has something right or wrong to say.

## What it does

Short passages about the Isles and questions on them; addition and subtraction of two-digit numbers, with the working
written out (`34 + 27` gives `4 + 7 = 11, 3 + 2 + 1 = 6, 61`), also over prices;
sorting and reversing lists of up to eight items; records as JSON; tool calls; dialogues that refer back; descriptions
from notes. Greedy decoding is meant: `temperature: 0`.

## What it is not

It knows no language beyond the few hundred words of its world and no fact of ours. It cannot converse, reason, write or
translate, and outside its tasks it answers confidently and wrongly. Documents in training had at most about
{longest} tokens; its positions go to {context}, and beyond the length it was trained on its answers mean nothing.

## How it was trained

`armillary train isles`, from the first weights to the last on {machine}: {steps} steps, {tokens:.1f} million tokens \
({targets:.1f} million of them targets), {minutes:.0f} minutes by the wall, {cpu_minutes:.0f} minutes of processor \
time over all cores. Muon for matrices, AdamW for the rest, warm-up and cosine, documents packed without leaks, loss on
what the assistant says. Sums are worked out digit by digit. Kinds of tasks that lagged were drawn more often.

## Levels on held-out tasks

Facts (names, operands, sets of items) and templates of these tasks never occur in training. Greedy decoding{short}.

{levels}
"""


def model_card(spec: ModelSpec, report: dict[str, Any]) -> str:
    """README.md of the exported folder.

    `report`: steps, tokens, targets, seconds, cpu_seconds, machine, longest, and levels (name -> share right, of
    `count` items each).
    """
    rows = ["| task | right | aim | items |\n|---|---|---|---|"]
    for name, level in report["levels"].items():
        aim = f"{TARGETS[name]:.0%}" if name in TARGETS else "–"
        rows.append(f"| {name} | {level:.1%} | {aim} | {report['count']} |")
    below = [name for name, level in report["levels"].items() if level < TARGETS.get(name, 0)]
    return _CARD.format(
        parameters=spec.num_parameters() / 1e6,
        layers=spec.num_layers,
        hidden=spec.hidden_size,
        vocab=spec.vocab_size,
        context=spec.max_context,
        longest=report["longest"],
        machine=report["machine"],
        steps=report["steps"],
        tokens=report["tokens"] / 1e6,
        targets=report["targets"] / 1e6,
        minutes=report["seconds"] / 60,
        cpu_minutes=report["cpu_seconds"] / 60,
        short=f"; the aim is not reached in {', '.join(below)}" if below else "",
        levels="\n".join(rows),
    )
