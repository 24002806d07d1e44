"""How well the twin predicts a real server on this machine: workloads that no profile has seen, from idle to overload.

    python -m bench.twin_costs [--model isles] [--profile FILE] [--seconds 10] [--repeats 3] [--json FILE]

Each workload is sent to `armillary serve` by the load client, at each load and by 64 users in a closed loop (by twice
as many as run at once where that is fewer), and simulated with the cost model of a profile, with the lengths that the
server counted: so many rounds of that (`--repeats`), and a profile is measured before the first, between rounds, and
after the last (unless `--profile` names one). A shared machine is faster at one time than at another; of that neither
real runs nor profiles then have more than the others. Loads are shares of the throughput that the twin itself reaches
with 64 users.

Printed: medians of TTFT and TPOT and the output rate, how far the mean of what the profiles say deviates from the mean
of the real runs, and how far these lie apart among themselves, which no prediction can beat; throughput in the closed
loop; and the knee, the rate at which the 90th percentile of TTFT passes four times its median at the lowest load.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from claims.real_server import LOADS, METRICS, WORKLOADS, Comparison, compare, measured

from armillary.deployment.engine import EngineSettings
from armillary.models.locate import locate
from armillary.twin.profile import Profile
from armillary.twin.profile_settings import ProfileSettings
from armillary.twin.served import shared


def show(comparison: Comparison) -> None:
    """Tables, and the medians of the deviations."""
    names = dict.fromkeys(cost.name for cost in comparison.profiles)
    print(f"{', '.join(names)}; {len(comparison.profiles)} profiles, held-out error {comparison.error:.1%}")
    heads = "".join(f"{metric:>10}{'twin':>8}{'reals':>8}" for metric in METRICS)
    print(f"{'workload':<14}{'load':>6}{'n':>5}{heads}  outside")
    for each in comparison.found:
        cells = "".join(
            f"{each.mean(m) * (1 if m == 'rate' else 1e3):>10.2f}{each.deviation(m):>+8.1%}{each.spread(m):>8.1%}"
            for m in METRICS
        )
        load = "users" if each.load is None else f"{each.load:.2f}"
        print(f"{each.name:<14}{load:>6}{each.requests:>5}{cells}{each.outside:>9.1%}")
    for below, words in ((True, "below the knee"), (False, "near and above it")):
        for metric in METRICS:
            deviation, single, spread = comparison.typical(metric, below)
            print(
                f"{words}, {metric}: median deviation {deviation:.1%} ({single:.1%} of one profile from the round "
                f"after it), median spread of real runs {spread:.1%}"
            )
    for each in comparison.closed():
        print(f"closed loop, {each.name}: rate {each.deviation('rate'):+.1%}, reals {each.spread('rate'):.1%} apart")
    for name in dict.fromkeys(each.name for each in comparison.found):
        knees = comparison.knees(name)
        each_run = ", ".join(_rate(value) for value in knees.runs)
        off = "" if knees.twin is None or knees.real is None else f", {knees.twin / knees.real - 1:+.1%}"
        low, high = (_rate(value) for value in knees.between)
        print(
            f"knee, {name}, requests/s: twin {_rate(knees.twin)} ({low} to {high} as far as it may be off), "
            f"real {_rate(knees.real)} ({each_run}){off}, {'inside' if knees.inside else 'not inside'}"
        )
    show_steps(comparison)


def document(comparison: Comparison) -> dict[str, object]:
    """What was found, for programs."""
    profiles = [cost.profile for cost in comparison.profiles]
    return {
        "profile": profiles[0].name,
        "begun": [profile.begun for profile in profiles],
        "error": comparison.error,
        "found": [asdict(each) for each in comparison.found],
    }


def _rate(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def show_steps(comparison: Comparison) -> None:
    """The cost model alone, apart from queueing: each step that the server took, predicted from its work by the profile
    before its round."""
    print(f"{'sequences':<14}{'steps':>7}{'ms':>9}{'twin over real, in sum':>24}")
    done = [
        (work.sequences, step.ended - step.started, cost.step_s(work))
        for steps, cost in zip(comparison.rounds, comparison.profiles, strict=False)
        for step, work in zip(steps, shared(steps, cost), strict=True)
    ]
    for low, high in ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 64)):
        chosen = [(real, twin) for sequences, real, twin in done if low <= sequences <= high]
        if chosen:
            real, twin = (sum(column) for column in zip(*chosen, strict=True))
            print(f"{f'{low} to {high}':<14}{len(chosen):>7}{1e3 * real / len(chosen):>9.2f}{twin / real:>24.2f}")


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isles")
    parser.add_argument("--profile", type=Path, help="a file of `armillary profile`, instead of measuring")
    parser.add_argument("--dtype", help="as of serve, and as the profile was measured")
    parser.add_argument("--max-step-tokens", type=int, help="likewise")
    parser.add_argument("--max-running", type=int, help="likewise")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run at load 1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("dtype", "max_step_tokens", "max_running")}
    settings = EngineSettings.model_validate({name: value for name, value in given.items() if value is not None})
    if options.profile:
        profile = partial(Profile.load, options.profile)
    else:
        profile = partial(measured, options.model, locate(options.model), settings, ProfileSettings())
    names, loads = options.workloads, options.loads
    comparison = compare(
        options.model, profile, settings, names, loads, options.seconds, options.repeats, lambda text: None
    )
    show(comparison)
    if options.json:
        options.json.write_text(json.dumps(document(comparison), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
