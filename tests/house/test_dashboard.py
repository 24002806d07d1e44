"""The dashboard and the page on observability name metrics that exist, and no others."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard_generator", ROOT / "tools" / "dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_dashboard_is_current_and_asks_for_what_there_is() -> None:
    module = generator()
    written = (ROOT / "docs" / "grafana.json").read_text(encoding="utf-8")
    assert module.dashboard() == written, "docs/grafana.json is out of date: run `make docs`"
    board = json.loads(written)
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"]) > 10
    assert all(panel["targets"] for panel in board["panels"])


def test_a_panel_of_a_metric_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = generator()
    monkeypatch.setattr(module, "PANELS", [("Wrong", "s", [("x", "armillary_steps_seconds_total")])])
    with pytest.raises(ValueError, match="armillary_steps_seconds_total"):
        module.dashboard()


def test_the_page_on_observability_names_metrics_that_exist() -> None:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert "armillary_time_to_first_token_seconds_bucket" in text
    assert generator().unknown(text) == set()
