"""A deployment loads as written, and what is wrong with one is said with place, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from armillary.core.order import ORDERS
from armillary.deployment import Deployment, build, load
from armillary.deployment.engine import EngineSettings
from armillary.deployment.fleet import FleetSettings, ReplicaSettings
from armillary.errors import ArmillaryError, Code


def write(folder: Path, text: str) -> Path:
    path = folder / "deployment.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> ArmillaryError:
    with pytest.raises(ArmillaryError) as caught:
        load(write(folder, text))
    assert caught.value.code is Code.INVALID_DEPLOYMENT
    return caught.value


def test_empty_file_is_the_default_deployment(tmp_path: Path) -> None:
    assert load(write(tmp_path, "")) == Deployment()
    assert Deployment().model.served_name == "isles"


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    deployment = load(
        write(
            tmp_path,
            """
models:
  - path: Qwen/Qwen3-0.6B
    name: small
engine:
  dtype: bfloat16
  kv_memory: 1.5GiB
  order: deadline
  prefix_cache: false
  starvation_s: 2.5
server:
  port: 0
  api_keys: [one, two]
  max_body: 1MB
""",
        )
    )
    assert deployment.model.served_name == "small"
    assert deployment.engine.kv_memory == 3 * 2**29
    assert deployment.engine.order == "deadline"
    assert not deployment.engine.prefix_cache
    assert deployment.server.api_keys == ("one", "two")
    assert deployment.server.max_body == 1_000_000


def test_an_entry_may_be_just_a_path(tmp_path: Path) -> None:
    assert load(write(tmp_path, "models: [Qwen/Qwen3-0.6B]")).model.served_name == "Qwen/Qwen3-0.6B"


def test_a_models_own_engine_settings_lie_over_the_common_ones(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text(
        "models: [a, {path: b, name: org/b, engine: {kv_blocks: 9, journal: ./own.jsonl}}, "
        "{path: c, name: x/c, engine: {threads: 1}}]\n"
        "engine: {kv_memory: 1GiB, journal: ./all.jsonl}\n"
    )
    deployment = load(path)
    first, second, third = (deployment.engine_of(model) for model in deployment.models)
    assert (first.kv_memory, first.kv_blocks, first.threads) == (2**30, None, None)
    assert (second.kv_memory, second.kv_blocks) == (None, 9)
    assert (third.kv_memory, third.threads) == (2**30, 1)
    # Two engines never write one journal.
    journals = [settings.journal for settings in (first, second, third)]
    assert journals == [tmp_path / "all.a.jsonl", tmp_path / "own.jsonl", tmp_path / "all.x_c.jsonl"]


def test_a_flag_for_the_model_is_for_the_first_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("models: [a, b]")
    assert [model.served_name for model in build(path, model={"name": "x"}).models] == ["x", "b"]


def test_a_folder_is_served_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    deployment = load(write(tmp_path, "models: [./tiny]"))
    assert deployment.model.path == str(tmp_path / "tiny"), "relative to the file, not to the current folder"
    assert deployment.model.served_name == "tiny"


def test_journal_beside_the_file(tmp_path: Path) -> None:
    assert load(write(tmp_path, "engine: {journal: ./run.jsonl}")).engine.journal == tmp_path / "run.jsonl"
    assert load(write(tmp_path, "engine: {journal: run.jsonl}")).engine.journal == Path("run.jsonl")


@pytest.mark.parametrize(
    ("text", "key", "parts"),
    [
        ("engine:\n  kv_blok: 3", "engine.kv_blok", [":2:", "given 3", "did you mean kv_blocks"]),
        ("engin: {}", "engin", [":1:", "did you mean engine"]),
        ("server:\n  colour: red", "server.colour", [":2:", "'red'", "known keys: api_key_file, api_keys"]),
        ("server:\n\n  port: 99999", "server.port", [":3:", "at most 65535", "given 99999"]),
        ("server: {stall_s: 0}", "server.stall_s", ["greater than 0", "given 0"]),
        ("engine: {block_size: 0}", "engine.block_size", ["at least 1", "given 0"]),
        ("engine: {block_size: many}", "engine.block_size", ["whole number", "'many'"]),
        ("engine: {starvation_s: .inf}", "engine.starvation_s", ["finite", "inf"]),
        ("engine: {dtype: int3}", "engine.dtype", ["float32", "bfloat16", "'int3'"]),
        ("engine: {order: random}", "engine.order", [*ORDERS, "'random'"]),
        ("engine: {kv_memory: lots}", "engine.kv_memory", ["512MiB", "'lots'"]),
        ("engine: {kv_memory: 0}", "engine.kv_memory", ["at least 1", "given 0"]),
        ("engine: {prefix_cache: perhaps}", "engine.prefix_cache", ["true or false", "'perhaps'"]),
        ("engine: {kv_blocks: 9, kv_memory: 1GiB}", "engine", ["kv_blocks or kv_memory", "leave one"]),
        ("engine: {max_chunk_tokens: 999}", "engine", ["max_step_tokens (512)", "given 999"]),
        ("engine: 3", "engine", ["keys and values", "given 3"]),
        ("models: []", "models", ["at least 1", "given []"]),
        ("models: [a, {path: b, name: a}]", "", ["different names", "given 'a' twice"]),
        ("models: [{path: a, aliases: [x]}, {path: b, aliases: [x]}]", "", ["given 'x' twice"]),
        ("models: [{path: a, engine: {kv_block: 3}}]", "models[0].engine.kv_block", ["did you mean kv_blocks"]),
        ("models: [{path: a, engine: {max_chunk_tokens: 999}}]", "models[0].engine", ["max_step_tokens (512)"]),
        ("models: [{path: a, engine: {max_chunk_tokens: 300}}]\nengine: {max_step_tokens: 99}", "", ["a: max_chunk"]),
        ("models: [{nam: x}]", "models[0].nam", ["did you mean name"]),
        ("models: isles", "models", ["a list", "'isles'"]),
    ],
)
def test_a_bad_value_is_refused_with_remedy(tmp_path: Path, text: str, key: str, parts: list[str]) -> None:
    error = refusal(tmp_path, text)
    assert error.param == key
    for part in ["deployment.yaml", *parts]:
        assert part in error.message
    assert "\n" not in error.message, "one problem, one line"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a\n- b", "given a list"),
        ("just text", "given a single value"),
        ("a: [1", "must be YAML"),
        ("server: {port: 1}\nserver: {port: 2}", "stands twice (first on line 1)"),
        ("server:\n  port: 1\n  port: 2", "server.port stands twice"),
        ("1: x", "a key must be a word"),
        ("a: !!python/object:os.system x", "must be YAML"),
    ],
)
def test_what_yaml_would_let_pass_is_refused(tmp_path: Path, text: str, part: str) -> None:
    assert part in refusal(tmp_path, text).message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArmillaryError, match=r"nowhere\.yaml: must be an existing file"):
        load(tmp_path / "nowhere.yaml")


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    lines = refusal(tmp_path, "engine: {block_size: 0, x: 1}\nserver: {port: -1}").message.splitlines()
    assert len(lines) == 3


def test_keys_never_reach_a_message_or_a_printed_deployment(tmp_path: Path) -> None:
    assert "sesame" not in refusal(tmp_path, "server: {api_keys: sesame}").message
    assert "sesame" not in repr(load(write(tmp_path, "server: {api_keys: [sesame]}")))


def test_flags_win_over_the_file_and_leave_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, "models: [./m]\nengine: {block_size: 8, order: priority}\nserver: {port: 1}")
    deployment = build(path, model={"name": "x"}, engine={"block_size": 4}, server={"port": 2})
    assert (deployment.engine.block_size, deployment.engine.order, deployment.server.port) == (4, "priority", 2)
    assert (deployment.model.name, deployment.model.path) == ("x", str(tmp_path / "m"))


def test_a_bad_flag_is_reported_as_a_flag() -> None:
    with pytest.raises(ArmillaryError, match=r"^--block-size must be at least 1, given 0$"):
        build(engine={"block_size": 0})
    with pytest.raises(ArmillaryError, match=r"^--name must not be empty, given ''$"):
        build(model={"name": ""})


def test_settings_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        EngineSettings().block_size = 3  # type: ignore[misc]


def test_a_fleet_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    replicas = "replicas: [{hardware: h100, count: 4, tensor_parallel: 2}]"
    (tmp_path / "d.yaml").write_text(f"fleet: {{{replicas}, route: prefix_aware, link: {{bandwidth: 1GB}}}}")
    fleet = load(tmp_path / "d.yaml").fleet
    assert fleet is not None and (fleet.count, fleet.replicas[0].devices, fleet.link.bandwidth) == (4, 2, 10**9)
    one, planned = fleet.remarks()
    assert one.startswith("one of 4 replicas") and "planned for a replica on 2 devices (h100)" in planned
    assert "planned for a replica on l4:" in FleetSettings(replicas=(ReplicaSettings(hardware="l4"),)).remarks()[0]
    assert FleetSettings().remarks() == []
    split = FleetSettings(replicas=(ReplicaSettings(role="prefill"), ReplicaSettings(role="decode")))
    with pytest.raises(ArmillaryError, match=r"role both to be served, given prefill"):
        split.remarks()
    other = FleetSettings(replicas=(ReplicaSettings(engine=EngineSettings(kv_blocks=64)),))
    with pytest.raises(ArmillaryError, match=r"no `engine` of their own to be served"):
        other.remarks()
    for wrong, said in {
        "{route: fastest}": "route must be one of round_robin",
        "{replicas: [{rolle: both}]}": "did you mean role",
        "{replicas: [{role: prefill}]}": "must come together, given prefill",
        "{replicas: [{role: prefill}, {role: decode}, {}]}": "given a mixture",
        "{scaling: {least: 3, most: 2}}": r"most must be at least `least` \(3\), given 2",
        "{scaling: {least: 2}}": r"count must be from scaling's least \(2\)",
        "{failures: {repair_s: 3}}": "every_s",
    }.items():
        (tmp_path / "d.yaml").write_text(f"fleet: {wrong}")
        with pytest.raises(ArmillaryError, match=said):
            load(tmp_path / "d.yaml")


def test_flags_win_over_what_a_model_or_a_replica_has_for_itself(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "models: [{path: ./m, engine: {max_running: 64, kv_memory: 1GiB, order: priority}}]\n"
        "fleet: {replicas: [{engine: {max_running: 32, block_size: 8}}]}",
    )
    deployment = build(path, engine={"max_running": 4, "kv_blocks": 100})
    engine = deployment.engine_of(deployment.model)
    assert (engine.max_running, engine.kv_blocks, engine.kv_memory, engine.order) == (4, 100, None, "priority")
    assert deployment.fleet is not None and deployment.fleet.replicas[0].engine == EngineSettings(block_size=8)
    kept = build(path)
    assert kept.engine_of(kept.model).max_running == 64
