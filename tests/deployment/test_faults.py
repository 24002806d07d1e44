"""Faults are said where the user wrote them, once, whatever kinds a value may be of."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from armillary.deployment import Deployment, checked
from armillary.errors import ArmillaryError


class Levels(BaseModel):
    model_config = ConfigDict(extra="forbid")

    levels: tuple[int | str, ...]
    scale: float = 1.0


class Varied(BaseModel):
    factors: dict[str, tuple[int | str, ...] | Levels]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"a.b": 8}, "factors.a.b must be a list or hold keys and values, given 8"),
        ({"a.b": [8, [9]]}, "factors.a.b[1] must be a whole number or text, given [9]"),
        (
            {"a.b": {"levles": [8]}},
            "factors.a.b.levels must be given\nfactors.a.b.levles is not a known key, given [8]; did you mean levels?",
        ),
        ({"a.b": {"levels": [8], "scale": "x"}}, "factors.a.b.scale must be a number, given 'x'"),
        ({"a.b": {"levels": [None]}}, "factors.a.b.levels[0] must be a whole number or text, given None"),
        (3, "factors must hold keys and values, given 3"),
    ],
)
def test_of_several_kinds_the_nearest_is_spoken_of(given: Any, said: str) -> None:
    with pytest.raises(ArmillaryError) as caught:
        checked(Varied, {"factors": given}, as_flags=False)
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"engine": {"kv_blok": 3}}, "engine.kv_blok is not a known key, given 3; did you mean kv_blocks?"),
        ({"fleet": {"replicas": [{"coutn": 3}]}}, "fleet.replicas[0].coutn is not a known key, given 3; did you mean"),
        ({"fleet": {"replicas": [{"count": "x"}]}}, "fleet.replicas[0].count must be a whole number, given 'x'"),
        ({"models": [3]}, "models[0] must hold keys and values, given 3"),
        ({"models": []}, "models must have at least 1 entry, given []"),
        ({"models": ["a", "a"]}, "models must have different names and aliases, given 'a' twice; set `name`"),
        ({"server": {"api_keys": [3]}}, "server.api_keys[0] must be text, given (not shown)"),
    ],
)
def test_a_key_is_named_with_its_place(given: Any, said: str) -> None:
    with pytest.raises(ArmillaryError) as caught:
        checked(Deployment, given, as_flags=False)
    assert caught.value.message.startswith(said) and "\n" not in caught.value.message


def test_a_fault_of_the_whole_repeats_nothing_of_it() -> None:
    with pytest.raises(ArmillaryError) as caught:
        checked(Deployment, {"engine": {"dtype": "bfloat16", "int8_activations": True}}, as_flags=False)
    assert caught.value.message.startswith("engine: int8_activations must go with weights in int8 or int4")
