"""A journal as a question: what was asked then, under these settings?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from armillary.deployment import EngineSettings
from armillary.deployment.settings import BUNDLED
from armillary.measure.journal import read_journal, read_lines, refuse
from armillary.measure.observed import lived
from armillary.plan.against import is_journal, observation
from armillary.twin.deployed import read_config
from armillary.twin.shapes import read_shape

_OTHERWISE = {"num_blocks": "kv_blocks"}
"""What a scheduler's configuration calls otherwise than the engine's settings."""


@dataclass(frozen=True)
class Recorded:
    """What a journal says besides its requests.

    Attributes:
        settings: of the engine, as far as its scheduler knew them.
        figures: what became of the requests, named as a forecast's.
        notes: what to know of them.
    """

    settings: Mapping[str, Any]
    figures: Mapping[str, float]
    notes: tuple[str, ...]

    def settings_for(self, model: str | None) -> Mapping[str, Any]:
        """The settings for a model (None: the bundled one), which may be made for shorter sequences.

        Raises ArmillaryError: as `read_config` and `read_shape`.
        """
        longest = self.settings.get("max_context")
        if longest is None:
            return self.settings
        most = read_shape(read_config(model or BUNDLED)).max_context
        return {**self.settings, "max_context": min(longest, most)}


def recorded(path: Path) -> Recorded | None:
    """What a journal says of the time since its engine last started; None where the file is none.

    Raises ArmillaryError: NOT_FOUND, and INVALID_REQUEST, as `read_journal` and `lived`.
    """
    if not is_journal(path):
        return None
    life = read_journal(path)[-1]
    (config,) = (line.get("scheduler") for line in read_lines(life.lines[:1], life.first))
    if not isinstance(config, dict):
        refuse(life.first, "a journal begins with the scheduler's configuration")
    found = {_OTHERWISE.get(name, name): value for name, value in config.items() if value is not None}
    side = observation(*lived(life))
    return Recorded(
        {name: value for name, value in found.items() if name in EngineSettings.model_fields},
        {name: figure.value for name, figure in side.figures.items()},
        (
            *side.notes,
            "recorded latencies begin where the engine took a request over, between two steps; expected ones where its "
            "client sent it",
        ),
    )
