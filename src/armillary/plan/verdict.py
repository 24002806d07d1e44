"""What the planner says: sentences first, then a table. Every figure is measured, fitted or assumed, and says so."""

from __future__ import annotations

from dataclasses import asdict
from math import isfinite, isinf
from typing import Any

from armillary.measure.arrivals import parse_arrivals
from armillary.measure.intervals import Interval
from armillary.plan.basis import basis
from armillary.plan.burst import BURST_S, WATCHED_S, Burst
from armillary.plan.busiest import CYCLES, NEAR
from armillary.plan.load_test import SECONDS, command, expected, sent
from armillary.plan.planner import KNEE_SHARE, Answer
from armillary.plan.question import rate_text
from armillary.plan.steady_load import conversing
from armillary.plan.trials import SLICE
from armillary.plan.whatif import MUCH, REPLICAS, Effect
from armillary.twin.analytic import AnalyticCost
from armillary.twin.here import HERE, measured_on

MOVES = 3


def sentences(found: Answer, written: str = "plan.json") -> list[tuple[str, str]]:
    """(heading, text), in the order in which a person wants to know.

    Args:
        written: where the resolved plan is, as a command is to name it.

    Headings tell where the figures below them come from; where those differ, the text says it of each.
    """
    steps = found.deployed.kinds[0].cost.provenance
    return [
        (f"Verdict ({steps})", _verdict(found)),
        (f"Headroom ({steps})", _headroom(found)),
        (f"Bottleneck ({steps})", _bottleneck(found)),
        (f"Next change ({steps})", _moves(found)),
        ("Cost and energy (assumed)", _cost(found)),
        ("How far to trust this", _trust(found)),
        (f"Check it ({steps})", check_said(found, written)),
    ]


def provenance(found: Answer) -> dict[str, str]:
    """Part of the plan -> where its figures come from: what is simulated is no better than the seconds of its steps."""
    steps = found.deployed.kinds[0].cost.provenance
    simulated = ("figures", "probability", "knee", "burst", "effects", "p95_ttft_shares", "load_test")
    errors = {} if found.deployed.kinds[0].cost.error is None else {"trust.held_out_error": "measured"}
    return dict.fromkeys(simulated, steps) | errors | {"cost_per_1000_requests": "assumed"}


def forecast_title(found: Answer) -> str:
    """What the table of figures is of."""
    count, steps = found.design.replicas, found.deployed.kinds[0].cost.provenance
    title = f"forecast ({steps})"
    return title if count <= SLICE else f"{title} of {SLICE} of the {count} replicas, under their share of the rate"


def costs(found: Answer) -> dict[str, Any]:
    """Dollars and energy for 1,000 requests at the planned rate; None where the data sheet says nothing."""
    hardware, devices = found.deployed.kinds[0].hardware, found.design.devices * found.design.replicas
    per_thousand = 1000 / found.rate / 3600
    price, power = found.question.price_of(hardware), found.question.power_of(hardware)
    busy = min(1.0, found.found.figures["busy share"].value / (found.peak if found.seen is None else 1.0))
    return {
        "devices": devices,
        "dollars": None if price is None else [p * devices * per_thousand for p in price],
        "watt_hours": None if power is None else power * devices * per_thousand * (0.3 + 0.7 * busy),
    }


def as_dict(found: Answer) -> dict[str, Any]:
    """The resolved plan, for programs. Equal questions give equal bytes."""
    return {
        "armillary_plan": 1,
        "hardware": found.question.hardware,
        "model": found.question.deployment.model.path,
        "slo": str(found.question.slo),
        "workload": found.question.spec.model_dump(mode="json", exclude_unset=True),
        "rate": found.rate,
        "busiest": {"times_the_mean_rate": found.peak, "share_of_the_file_simulated": found.seen},
        "design": asdict(found.design),
        "too_long_share": found.too_long,
        "probability": found.probability,
        "probability_of_one_fewer": found.fewer,
        "knee": _interval(found.knee),
        "burst": asdict(found.burst),
        "bottleneck": found.bottleneck,
        "p95_ttft_shares": found.waiting,
        "effects": [asdict(effect) | {"matters": effect.matters} for effect in found.effects],
        "cost_per_1000_requests": costs(found),
        "figures": {name: _interval(value) for name, value in found.found.figures.items()},
        "trust": {
            "provenance": found.deployed.kinds[0].cost.provenance,
            "held_out_error": found.deployed.kinds[0].cost.error,
            "outside_of_what_was_measured": found.found.outside,
            "mean_seconds_analytic": found.analytic[0],
            "mean_seconds_simulated": found.analytic[1],
            "steady": found.steady,
            "replications": len(found.found.replications),
        },
        "load_test": {
            "command": command(found),
            "expected": {name: _interval(value) for name, value in expected(found).items()},
        },
        "provenance": provenance(found),
        "basis": basis(found.question),
        "question": found.question.as_dict(),
        "searched": {
            "simulations": found.searched.trials,
            "not_simulated": len(found.searched.unlikely),
            "refused": {design.title: why for design, why in found.searched.refused.items()},
            "requests": found.simulated,
        },
    }


def _verdict(found: Answer) -> str:
    many = len(found.found.replications)
    text = f"{found.design.title}. Meets {found.question.slo} at {rate_text(found.rate)} requests/s"
    if found.peak != 1:
        text += f" on average, {rate_text(found.rate * found.peak)} requests/s at the busiest"
    if found.question.rate is None:
        text += f" ({KNEE_SHARE:.0%} of what it serves at most, since no rate was asked)"
    text += f" with probability {found.probability:.2f}: in {found.found.met_share * many:.0f} of {many} simulations, "
    text += "each of other requests" if found.seen is None else "each of a window of the file"
    text += f" and of a machine as much slower or faster as the prediction may err.{_busiest(found)}"
    if found.too_long:
        text += f" {found.too_long:.1%} of the requests have more tokens than the model's context, are refused by any "
        text += "deployment, and are not judged."
    if found.fewer is not None:
        count = found.design.replicas - 1
        text += f" {count} replica{'s do' if count > 1 else ' does'} not: in {found.fewer * many:.0f} of {many}."
    if found.question.hardware.lower() == HERE and found.design.replicas > 1:
        text += f" This machine is one replica: it takes {found.design.replicas} like it."
    return text


def _busiest(found: Answer) -> str:
    """What was simulated of a workload that is not alike all the time."""
    many = len(found.found.replications)
    if found.seen is not None:
        near, rest = min(NEAR, many), max(0, many - NEAR)
        others = f", {rest} from all over it" if rest else ""
        text = f" {near} windows are around the busiest of the file{others}; together they hold {found.seen:.0%} of it"
        return f"{text}, and what lies between is not judged." if found.seen < 1 else f"{text}."
    cycle = parse_arrivals(found.question.spec.arrivals).cycle_s
    if not cycle:
        return ""
    text = f" The rate changes in cycles of {_time(cycle) if cycle < 3600 else f'{cycle / 3600:.3g} h'}"
    if found.peak == 1:
        return f"{text}: a simulation holds {CYCLES} of them or more, and the service level is one over all of them."
    text += ", which is too long to be simulated, so the service level is asked of the highest rate, as if that lasted"
    return f"{text}: at other times less comes. All that follows is said of that time, but for rates, which are means."


def _headroom(found: Answer) -> str:
    knee = found.knee
    ratio = knee.value / found.rate
    text = f"The service level holds up to about {rate_text(knee.value)} requests/s"
    text += " on average" if found.peak != 1 else ""
    if isfinite(knee.high):
        text += f" ({rate_text(knee.low)} to {rate_text(knee.high)} on machines as the prediction may err)"
    text += f", {ratio:.2f} times the planned rate. "
    return f"{text}{_burst(found.burst)}"


def _burst(burst: Burst) -> str:
    text = f"Twice the rate for a minute brings the p95 time to first token to {_time(burst.ttft_p95)}"
    if burst.lost >= 0.001:
        text += f", {burst.lost:.1%} of the requests find the queue full or run out of time"
    if isinf(burst.recovery_s):
        text += f"; {WATCHED_S:g} s after it, the service level does not hold yet."
    elif burst.recovery_s:
        text += f"; the service level holds again {_time(burst.recovery_s)} after it."
    else:
        text += "; it holds again at once."
    if burst.simulated_s < BURST_S:
        told = "the queue is taken to grow on as in" if burst.growing else "the rest is taken to be as"
        text += f" (The first {_time(burst.simulated_s)} of it were simulated; {told} their second half.)"
    return text


def _bottleneck(found: Answer) -> str:
    shares = ", ".join(f"{share:.0%} {name}" for name, share in found.waiting.items())
    text = f"{found.bottleneck[0].upper()}{found.bottleneck[1:]}"
    if found.limiting is not None:
        text += f": rate {gain(found.limiting)} with {found.limiting.name}"
    others = [e for e in found.effects if e.resource not in (None, REPLICAS) and e is not found.limiting]
    less = ", ".join(f"{e.name} {gain(e)}" if e.matters else f"{e.name} nothing" for e in others)
    return f"{text} ({less}). The p95 time to first token is {shares}."


def _moves(found: Answer) -> str:
    advice = [effect for effect in found.effects if effect.advice]
    useful = [effect for effect in advice if effect.matters and effect.knee > 1][:MOVES]
    idle = [effect.name for effect in advice if not effect.matters]
    harmful = [f"{effect.name} ({effect.knee - 1:+.0%})" for effect in advice if effect.matters and effect.knee < 1]
    here = found.question.hardware.lower() == HERE
    text = ("; ".join(_moved(effect, here) for effect in useful) or "Nothing that was tried raises the rate") + "."
    if idle:
        text += f" What does not matter: {', '.join(idle)}."
    if harmful:
        text += f" What would lower it: {', '.join(harmful)}."
    return text


def _moved(effect: Effect, here: bool) -> str:
    price = "" if effect.cost == 1 else f", cost {effect.cost - 1:+.0%}"
    name = f"{effect.name}, a machine like this one" if here and effect.resource == REPLICAS else effect.name
    return f"{name}: rate {gain(effect)}, p95 time to first token {effect.ttft_p95 - 1:+.0%}{price}"


def gain(effect: Effect) -> str:
    """What a change does to the rate, in words."""
    return f"{effect.knee - 1:+.0%}" if effect.knee < MUCH else f"{MUCH:g} times or more"


def _cost(found: Answer) -> str:
    cost = costs(found)
    hardware = found.deployed.kinds[0].hardware
    parts = []
    if cost["dollars"] is not None:
        low, high = cost["dollars"]
        source = "as given" if found.question.price else f"assumed: {hardware.sources.get('price', 'a price list')}"
        span = f"{low:.3g} to {high:.3g}" if high > low else f"{low:.3g}"
        parts.append(f"{span} dollars for 1,000 requests ({source})")
    if cost["watt_hours"] is not None:
        energy = f"about {cost['watt_hours']:.3g} Wh for 1,000 requests"
        source = "as given" if found.question.power else "of the data sheet"
        parts.append(f"{energy} (assumed: full power {source} while busy, 30 % of it while idle)")
    if not parts:
        return "Neither price nor power of this machine is known: give --price and --power."
    return "; ".join(parts) + "."


def _trust(found: Answer) -> str:
    cost = found.deployed.kinds[0].cost
    if isinstance(cost, AnalyticCost):
        text = "Steps are assumed, from a data sheet and shares of its peaks; intervals span those assumptions. "
        if cost.shape.caveat:
            text += f"{cost.shape.caveat[0].upper()}{cost.shape.caveat[1:]}. "
    else:
        median, p95 = cost.error or (0.0, 0.0)
        text = (
            f"Steps are fitted to measurements of {measured_on(cost.profile)}; left-out ones err by {median:.1%} "
            f"(measured; median, p95 {p95:.1%}). "
        )
        text += f"{found.found.outside:.1%} of the simulated steps lie outside of what was measured. "
    chain, simulated = found.analytic
    text += f"Queueing theory ({cost.provenance}) expects answers to end after {_time(chain)} on average, the "
    text += f"simulation after {_time(simulated)}. "
    said = {"short": "too short to tell whether it was steady", "batch": "all at once"}
    told = ", ".join(f"{count} {said.get(verdict, verdict)}" for verdict, count in found.steady.items())
    text += f"Of {len(found.found.replications)} replications: {told}."
    text += f" {laws_held(found)}"
    if found.searched.refused:
        text += f" {len(found.searched.refused)} designs were not possible."
    return text


_LAWS = {"little": "Little's", "utilisation": "utilisation", "forced flow": "forced flow", "bottleneck": "bottleneck"}


def laws_held(found: Answer) -> str:
    """In how many replications each operational law holds, of those in which it was checked."""
    runs = [{law.name: law.holds() for law in one.audit.laws} for one in found.found.replications]
    told: dict[str, list[str]] = {}
    for name, title in _LAWS.items():
        checked = [run[name] for run in runs if name in run]
        how = f"hold in {sum(checked)} of {len(checked)}" if checked else "not checked"
        told.setdefault(how, []).append(title)
    parts = [f"{', '.join(names)} {how}" for how, names in told.items()]
    return f"Operational laws: {'; '.join(parts)}."


def check_said(found: Answer, written: str) -> str:
    """The load test that checks a plan, what it should find, and what to know of it."""
    told = ", ".join(
        f"{name} {_time(value.low)} to {_time(value.high)}"
        for name, value in expected(found).items()
        if isfinite(value.high)
    )
    text = f"{command(found)} --json-path load.json  should find {told}; `armillary compare {written} load.json` tells."
    seconds = sent(found) / found.tested_rate
    if seconds < 0.99 * SECONDS:
        text += f" It sends no more than {sent(found):,} requests and so is over after {_time(seconds)}; figures of so "
        text += "short a run scatter more than those intervals say."
    if found.seen is not None:
        text += " It sends the beginning of the file, which need not be as busy as what was simulated."
    if conversing(found.question.spec):
        text += " Its conversations begin with nothing, so its first minutes are easier than the plan."
    return text


def _interval(value: Interval) -> dict[str, float | None]:
    return {
        name: number if isfinite(number) else None
        for name, number in (("value", value.value), ("low", value.low), ("high", value.high))
    }


def _time(seconds: float) -> str:
    if isinf(seconds):
        return "no end"
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
