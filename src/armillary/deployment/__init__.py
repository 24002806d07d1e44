"""The deployment: one file, one object, from which everything that runs is configured.

`load` reads a file, `build` lays a model name and flags over it, `Deployment` is what both return.
"""

from armillary.deployment.engine import EngineSettings
from armillary.deployment.explain import checked, explain
from armillary.deployment.fleet import FailureSettings, FleetSettings, LinkSettings, ReplicaSettings, ScalingSettings
from armillary.deployment.group import Settings
from armillary.deployment.load import build, load
from armillary.deployment.server import ServerSettings
from armillary.deployment.settings import Deployment, ModelSettings
from armillary.deployment.size import Size, format_size, parse_size

__all__ = [
    "Deployment",
    "EngineSettings",
    "FailureSettings",
    "FleetSettings",
    "LinkSettings",
    "ModelSettings",
    "ReplicaSettings",
    "ScalingSettings",
    "ServerSettings",
    "Settings",
    "Size",
    "build",
    "checked",
    "explain",
    "format_size",
    "load",
    "parse_size",
]
