"""The deployment file that a plan ends in."""

from __future__ import annotations

from pathlib import Path

import yaml

from armillary.plan.planner import Answer


def text(found: Answer) -> str:
    """The file, with what was chosen and the KV blocks that were found spelled out."""
    deployment = found.design.deployment(found.question)
    values = deployment.model_dump(mode="json", exclude_unset=True)
    config = found.deployed.kinds[0].config
    values.setdefault("engine", {}).update(
        {
            "max_running": config.max_running,
            "max_step_tokens": config.max_step_tokens,
            "kv_blocks": config.num_blocks,
        }
    )
    values["engine"].pop("kv_memory", None)
    values["models"] = [
        model.model_dump(mode="json", exclude_unset=True) | {"path": _anywhere(model.path)}
        for model in deployment.models
    ]
    values["fleet"] = deployment.fleet.model_dump(mode="json", exclude_unset=True) if deployment.fleet else None
    written: str = yaml.safe_dump(values, sort_keys=False)
    return "# Written by `armillary plan`. `armillary serve` and `armillary simulate` take it as it is.\n" + written


def _anywhere(path: str) -> str:
    """A path in a file that begins with a dot is taken from the file's folder; a plan's lies elsewhere."""
    return str(Path(path).absolute()) if path.startswith(("./", "../")) else path
