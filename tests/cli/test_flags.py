"""Flags are the fields of the deployment, all of them, and reach it as written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from armillary.cli.flags import Given, with_flags
from armillary.cli.serve import deployment_from
from armillary.deployment import Deployment, EngineSettings, ModelSettings, ServerSettings
from armillary.deployment.explain import flag_name
from armillary.errors import ArmillaryError

serving = with_flags(omit=("path", "engine"), model=ModelSettings, engine=EngineSettings, server=ServerSettings)
SAMPLES: dict[str, tuple[list[str], Any]] = {
    "name": (["house"], "house"),
    "aliases": (["one", "--aliases", "two"], ("one", "two")),
    "start": (["asleep"], "asleep"),
    "dtype": (["float32"], "float32"),
    "quantization_group": (["64"], 64),
    "kv_dtype": (["float32"], "float32"),
    "block_size": (["8"], 8),
    "calls": (["none"], "none"),
    "reasoning": (["none"], "none"),
    "kv_blocks": (["99"], 99),
    "kv_memory": (["1GiB"], 2**30),
    "max_context": (["100"], 100),
    "max_step_tokens": (["64"], 64),
    "max_chunk_tokens": (["32"], 32),
    "max_running": (["3"], 3),
    "max_waiting": (["4"], 4),
    "max_waiting_tokens": (["5000"], 5000),
    "order": (["deadline"], "deadline"),
    "starvation_s": (["1.5"], 1.5),
    "journal": (["j.jsonl"], Path("j.jsonl")),
    "timeline_steps": (["0"], 0),
    "threads": (["2"], 2),
    "seed": (["7"], 7),
    "host": (["0.0.0.0"], "0.0.0.0"),
    "port": (["0"], 0),
    "api_keys": (["one", "--api-keys", "two"], ("one", "two")),
    "api_key_file": (["keys.yaml"], Path("keys.yaml")),
    "requests_per_minute": (["60"], 60),
    "tokens_per_minute": (["7000"], 7000),
    "max_waiting_per_key": (["8"], 8),
    "max_waiting_tokens_per_key": (["900"], 900),
    "cors_origins": (["https://a.example", "--cors-origins", "*"], ("https://a.example", "*")),
    "max_body": (["1MiB"], 2**20),
    "header_timeout_s": (["5"], 5.0),
    "max_connections": (["100"], 100),
    "drain_s": (["0"], 0.0),
    "stall_s": (["9"], 9.0),
    "response_store": (["1MiB"], 2**20),
    "manage_models": (["off"], "off"),
    "watch": (["all"], "all"),
    "otlp_endpoint": (["http://collector:4318"], "http://collector:4318"),
    "log_level": (["debug"], "debug"),
    "log_format": (["json"], "json"),
}

NEEDS = {"quantization_group": ["--dtype", "int4"]}
"""Fields that are refused without another."""
SWITCHES = {"prefix_cache", "forced_tokens", "wake_on_request", "page", "int8_activations", "packed_cache"}


def deployment_of(*arguments: str, env: dict[str, str] | None = None) -> Deployment:
    """The deployment that `armillary serve ARGUMENTS` would run."""
    seen: list[Deployment] = []
    app = typer.Typer()

    @app.command()
    @serving
    def serve(target: str | None = typer.Argument(None), *, given: Given) -> None:
        seen.append(deployment_from(target, given))

    result = CliRunner().invoke(app, list(arguments), env=env)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return seen[0]


def field_of(deployment: Deployment, name: str) -> Any:
    for group in (deployment.model, deployment.engine, deployment.server):
        if name in type(group).model_fields:
            return getattr(group, name)
    raise KeyError(name)


def test_without_flags_the_default_deployment() -> None:
    assert deployment_of() == Deployment()


def test_the_samples_cover_every_field() -> None:
    fields = {name for group in (ModelSettings, EngineSettings, ServerSettings) for name in group.model_fields}
    assert fields == set(SAMPLES) | SWITCHES | {"path", "engine"}


@pytest.mark.parametrize("name", SAMPLES)
def test_every_field_has_a_flag_that_sets_it_and_nothing_else(name: str) -> None:
    words, expected = SAMPLES[name]
    deployment = deployment_of(flag_name(name), *words, *NEEDS.get(name, []))
    assert field_of(deployment, name) == expected
    others = set(SAMPLES) - {name} - ({"dtype"} if name in NEEDS else set())
    assert all(field_of(deployment, other) == field_of(Deployment(), other) for other in others)


def test_prefix_cache_has_both_forms() -> None:
    assert not deployment_of("--no-prefix-cache").engine.prefix_cache
    assert deployment_of("--prefix-cache").engine.prefix_cache


def test_a_false_flag_wins_over_a_true_file(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("engine: {prefix_cache: true, block_size: 4}\nserver: {drain_s: 3}")
    deployment = deployment_of(str(path), "--no-prefix-cache", "--drain-s", "0")
    assert not deployment.engine.prefix_cache
    assert deployment.server.drain_s == 0
    assert deployment.engine.block_size == 4


def test_keys_come_from_the_environment() -> None:
    assert deployment_of(env={"ARMILLARY_API_KEYS": "one two"}).server.api_keys == ("one", "two")


def test_every_field_says_what_it_is_in_the_help() -> None:
    app = typer.Typer()
    app.command()(serving(lambda given: None))
    output = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "250", "TERM": "dumb"}).output
    for name in SAMPLES:
        assert flag_name(name) in output
    for group in (ModelSettings, EngineSettings, ServerSettings):
        for name, field in group.model_fields.items():
            assert field.description and field.description.endswith("."), name


def test_a_bad_flag_is_refused_in_the_words_of_the_deployment() -> None:
    with pytest.raises(ArmillaryError, match="--order must be one of deadline, fcfs, priority, given 'random'"):
        deployment_of("--order", "random")
    with pytest.raises(ArmillaryError, match="--kv-memory must be a number of bytes"):
        deployment_of("--kv-memory", "lots")
