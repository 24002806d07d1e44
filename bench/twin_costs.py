"""How well the twin predicts a real server on this machine: workloads that no profile has seen, from idle to overload.

    python -m bench.twin_costs [--model isles] [--profile FILE] [--seconds 10] [--repeats 3] [--json FILE]

Each workload is sent to `armillary serve` by the load client, `--repeats` times at each load and by 64 users in a
closed loop (by twice as many as run at once where that is fewer), and simulated with the cost model of a profile, with
the lengths that the server counted. Loads are shares of the throughput that the twin itself reaches with 64 users.
Printed: medians of TTFT and TPOT and the output rate, the twin's deviation from the mean of the real runs, and how far
these lie apart among themselves, which no prediction can beat; throughput in the closed loop; and the knee, the rate
at which the 90th percentile of TTFT passes four times its median at the lowest load.

A machine that is shared is faster at one time than at another. Before and after every run bursts of the profile's own
kind of requests are sent. What their steps took, over what the profile says, is the level at which the run is
predicted, as far as successive bursts agree, of next tokens and of prompts; deviations without it are printed too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from claims.real_server import LOADS, METRICS, WORKLOADS, Comparison, compare

from armillary.deployment.engine import EngineSettings
from armillary.models.config import read_json
from armillary.models.locate import locate
from armillary.twin.here import profile_for
from armillary.twin.profile import Profile
from armillary.twin.served import shared


def show(comparison: Comparison) -> None:
    """Tables, and the medians of the deviations."""
    print(
        f"{comparison.cost.name}; held-out error {comparison.error:.1%}; level of the runs "
        f"{comparison.level.tokens:.2f} (next tokens) and {comparison.level.prompts:.2f} (prompts)"
    )
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
            deviation, spread = comparison.typical(metric, below)
            plain, _ = comparison.typical(metric, below, plain=True)
            print(
                f"{words}, {metric}: median deviation {deviation:.1%} ({plain:.1%} at the profile's level), "
                f"median spread of real runs {spread:.1%}"
            )
    for each in comparison.closed():
        print(f"closed loop, {each.name}: rate {each.deviation('rate'):+.1%}, reals {each.spread('rate'):.1%} apart")
    for name in dict.fromkeys(each.name for each in comparison.found):
        knees = comparison.knees(name)
        single = ", ".join(_rate(value) for value in knees.runs)
        off = "" if knees.twin is None or knees.real is None else f", {knees.twin / knees.real - 1:+.1%}"
        low, high = (_rate(value) for value in knees.between)
        print(
            f"knee, {name}, requests/s: twin {_rate(knees.twin)} ({_rate(knees.plain)} at the profile's level, "
            f"{low} to {high} as far as it may be off), real {_rate(knees.real)} ({single}){off}, "
            f"{'inside' if knees.inside else 'not inside'}"
        )
    show_steps(comparison)


def _rate(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f}"


def show_steps(comparison: Comparison) -> None:
    """The cost model alone, apart from queueing: each step that the server took, predicted from its work."""
    print(f"{'sequences':<14}{'steps':>7}{'ms':>9}{'twin over real, in sum':>24}")
    works = shared(comparison.steps, comparison.cost)
    for low, high in ((1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 64)):
        chosen = [pair for pair in zip(comparison.steps, works, strict=True) if low <= pair[1].sequences <= high]
        if chosen:
            real = sum(step.ended - step.started for step, _ in chosen)
            ratio = sum(comparison.cost.step_s(work) for _, work in chosen) / real
            print(f"{f'{low} to {high}':<14}{len(chosen):>7}{1e3 * real / len(chosen):>9.2f}{ratio:>24.2f}")


def main() -> None:
    """Measure, simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="isles")
    parser.add_argument(
        "--profile", type=Path, help="a file of `armillary profile`; otherwise the one kept for the model"
    )
    parser.add_argument("--dtype", default="auto", help="as of serve, and as the profile was measured")
    parser.add_argument("--max-step-tokens", type=int, help="likewise")
    parser.add_argument("--max-running", type=int, help="likewise")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--loads", nargs="+", type=float, default=list(LOADS))
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run at load 1")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config_json = read_json(locate(options.model) / "config.json") or {}
    profile = Profile.load(options.profile) if options.profile else profile_for(config_json)
    given = {name: getattr(options, name) for name in ("dtype", "max_step_tokens", "max_running")}
    settings = EngineSettings.model_validate({name: value for name, value in given.items() if value is not None})
    names, loads = options.workloads, options.loads
    comparison = compare(
        options.model, profile, settings, names, loads, options.seconds, options.repeats, lambda text: None
    )
    show(comparison)
    if options.json:
        kept = {"profile": profile.name, "begun": profile.begun, "error": comparison.error}
        kept["found"] = [asdict(each) for each in comparison.found]
        options.json.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
