"""The scaling policy that a deployment names."""

from __future__ import annotations

from armillary.core.scaling import Brake, ByForecast, ByQueue, BySlo, Scaler
from armillary.deployment import ScalingSettings


def scaler_of(settings: ScalingSettings, ready_s: float) -> Brake:
    """The policy, with its limits; a replica answers `ready_s` seconds after it was asked for."""
    scaler: Scaler
    match settings.by:
        case "queue":
            scaler = ByQueue(settings.per_replica)
        case "slo":
            scaler = BySlo(settings.most_late)
        case "forecast":
            scaler = ByForecast(settings.rate_per_replica, ready_s + settings.period_s)
    return Brake(scaler, settings.least, settings.most, settings.calm_s)
