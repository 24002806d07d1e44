"""A Grafana dashboard, `docs/grafana.json`, made of the metrics that the server really has: `make docs` writes it.

A panel that names a metric which does not exist fails here, before it is an empty panel on somebody's wall.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

FILE = Path(__file__).resolve().parents[1] / "docs" / "grafana.json"

MODEL = '{model=~"$model"}'
WIDTH, HEIGHT = 12, 8


def quantiles(metric: str) -> list[tuple[str, str]]:
    """Median, 95th and 99th percentile of a histogram."""
    return [
        (
            f"p{share}",
            f"histogram_quantile(0.{share}, sum by (le) (rate({metric}_bucket{MODEL}[$__rate_interval])))",
        )
        for share in (50, 95, 99)
    ]


def rate(metric: str, *by: str) -> str:
    summed = f"sum by ({', '.join(by)})" if by else "sum"
    return f"{summed} (rate({metric}{MODEL}[$__rate_interval]))"


PANELS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("Time to first token", "s", quantiles("armillary_time_to_first_token_seconds")),
    ("Time between tokens", "s", quantiles("armillary_inter_token_seconds")),
    ("Whole request", "s", quantiles("armillary_request_seconds")),
    ("Time in the queue", "s", quantiles("armillary_queue_seconds")),
    (
        "Tokens per second",
        "short",
        [
            ("generated", rate("armillary_generated_tokens_total")),
            ("computed", rate("armillary_computed_tokens_total")),
            ("prompts", rate("armillary_prompt_tokens_total")),
        ],
    ),
    (
        "Requests per second, by how they ended",
        "reqps",
        [("{{finish_reason}}", rate("armillary_requests_total", "finish_reason"))],
    ),
    (
        "Sequences",
        "short",
        [
            ("running", f"sum(armillary_sequences_running{MODEL})"),
            ("waiting", f"sum(armillary_sequences_waiting{MODEL})"),
        ],
    ),
    (
        "KV blocks",
        "short",
        [
            ("used", f"sum(armillary_kv_blocks_used{MODEL})"),
            ("cached", f"sum(armillary_kv_blocks_cached{MODEL})"),
            ("free", f"sum(armillary_kv_blocks_free{MODEL})"),
        ],
    ),
    (
        "Prompt tokens found in the prefix cache",
        "percentunit",
        [("hits", f"{rate('armillary_prefix_hit_tokens_total')} / {rate('armillary_prefix_query_tokens_total')}")],
    ),
    (
        "Preemptions and evictions per second",
        "short",
        [
            ("preemptions", rate("armillary_preemptions_total")),
            ("evictions", rate("armillary_evictions_total")),
        ],
    ),
    (
        "Duration of a step, 95th percentile by kind",
        "s",
        [
            (
                "{{kind}}",
                "histogram_quantile(0.95, sum by (le, kind) "
                f"(rate(armillary_step_seconds_bucket{MODEL}[$__rate_interval])))",
            )
        ],
    ),
    (
        "Share of time in steps, by kind",
        "percentunit",
        [("{{kind}}", rate("armillary_step_seconds_sum", "kind"))],
    ),
    (
        "Refused and failed per second",
        "short",
        [
            ("refused: {{reason}}", rate("armillary_rejected_total", "reason")),
            ("failed: {{code}}", rate("armillary_errors_total", "code")),
        ],
    ),
    ("Left by clients per second, by where", "short", [("{{state}}", rate("armillary_cancellations_total", "state"))]),
]


def names() -> set[str]:
    """Every series name that a server with a model shows."""
    from armillary.core.stats import SchedulerStats
    from armillary.runtime.worker import WorkerStats
    from armillary.server.metrics import EngineState, ServerMetrics

    metrics = ServerMetrics(lambda: {"m": EngineState(WorkerStats(SchedulerStats(), 0, 0, 0, 0, 0))}, lambda: True)
    metrics.expect("m")
    metrics.rejected.labels("m", "")
    metrics.errors.labels("m", "")
    metrics.responses.labels("200")
    return set(re.findall(r"^(armillary_\w+)", metrics.render().decode(), re.MULTILINE))


def unknown(text: str) -> set[str]:
    """Metrics that a text names and no server has."""
    return set(re.findall(r"armillary_\w+", text)) - names()


def dashboard() -> str:
    """The dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    for place, (title, unit, queries) in enumerate(PANELS):
        if missing := unknown(" ".join(query for _, query in queries)):
            raise ValueError(f"panel {title!r} names {', '.join(sorted(missing))}, which no server has")
        panels.append(
            {
                "id": place + 1,
                "type": "timeseries",
                "title": title,
                "datasource": {"type": "prometheus", "uid": "${datasource}"},
                "gridPos": {"x": WIDTH * (place % 2), "y": HEIGHT * (place // 2), "w": WIDTH, "h": HEIGHT},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "targets": [
                    {"refId": chr(ord("A") + number), "expr": query, "legendFormat": legend}
                    for number, (legend, query) in enumerate(queries)
                ],
            }
        )
    board = {
        "title": "Armillary",
        "uid": "armillary",
        "schemaVersion": 39,
        "tags": ["armillary"],
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "model",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": {"query": "label_values(armillary_steps_total, model)", "refId": "model"},
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                    "allValue": ".*",
                    "refresh": 2,
                },
            ]
        },
        "panels": panels,
    }
    return json.dumps(board, indent=2) + "\n"


if __name__ == "__main__":
    temporary = FILE.with_suffix(".tmp")
    temporary.write_text(dashboard(), encoding="utf-8")
    os.replace(temporary, FILE)
    print("docs/grafana.json")
