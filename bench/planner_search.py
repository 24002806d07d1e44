"""Is the planner's choice as good as that of an exhaustive search, and at what part of its simulations?

    python bench/planner_search.py [--space NAME ...] [--processes N] [--json PATH]

Three small spaces of designs, each with a model, hardware and a workload of its own. The exhaustive search finds the
knee of every design, each as the planner finds that of its last candidates: full simulations, most of three seeds, by
bisection to 2 %, from where queueing theory expects it, and nothing asked twice. The planner's search is the one of
`armillary plan`. Both ask the same simulations the same questions, so the exhaustive search's own figures judge the
planner's choice. The best of many noisy figures is also the luckiest, which where steps vary from run to run is worth a
few percent: so both choices are also compared once more in workloads that neither search has seen. Counted are
simulations, requests in them (those that are simulated to warm up included) and seconds on the simulations' clocks.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from armillary.deployment import Deployment
from armillary.errors import ArmillaryError
from armillary.measure.report import write_text
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.crew import Crew, processors
from armillary.plan.designs import Design
from armillary.plan.question import Question
from armillary.plan.search import ROUNDS, Knee, Round, Search
from armillary.plan.trials import Trials

RESULTS = Path(__file__).parent / "results"
BARS = {"goodput": 0.98, "simulations": 0.1}
FRESH, AFTER = Round(9, 0.0, 0.01), 1000
"""How exactly both choices are compared, and the number of the first workload of that."""


def llama(hidden: int, layers: int, intermediate: int) -> dict[str, Any]:
    """The config.json of a model of this shape."""
    return {
        "model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 32,
        "num_key_value_heads": 8, "intermediate_size": intermediate, "max_position_embeddings": 8192,
        "vocab_size": 128256, "torch_dtype": "bfloat16",
    }  # fmt: skip


@dataclass(frozen=True)
class Space:
    """Designs, and what is asked of them. `model` is a bundled one's name or the contents of a config.json."""

    model: str | dict[str, Any]
    hardware: str
    spec: dict[str, Any]
    slo: str
    designs: tuple[Design, ...]


def grid(devices: Sequence[int], running: Sequence[int], tokens: Sequence[int]) -> tuple[Design, ...]:
    """Every combination that an engine takes."""
    return tuple(Design(*values) for values in product(devices, running, tokens) if values[2] >= values[1])


SPACES = {
    "isles-here": Space(
        "isles", "here",
        {"prompt_length": "lognormal:96,0.8,400", "output_length": "lognormal:48,0.6,160"},
        "ttft p95 200ms, tpot p95 8ms",
        grid((1,), (4, 8, 12, 16, 24, 32, 48, 64), (64, 96, 128, 192, 256, 384, 512)),
    ),
    "1b-l4": Space(
        llama(2048, 16, 8192), "l4",
        {"prompt_length": "uniform:50,450", "output_length": "uniform:10,60", "prefixes": 20, "prefix_length": 256},
        "ttft p95 150ms, tpot p95 25ms",
        grid((1,), (8, 16, 24, 32, 48, 64, 96, 128), (128, 256, 512, 1024, 2048)),
    ),
    "8b-h100": Space(
        llama(4096, 32, 14336), "h100",
        {"prompt_length": "lognormal:600,0.8,3000", "output_length": "uniform:20,80"},
        "ttft p95 200ms, tpot p95 15ms",
        grid((1, 2, 4, 8), (16, 32, 64, 128), (256, 512, 2048)),
    ),
}  # fmt: skip


def question_of(space: Space, folder: Path) -> Question:
    """What the planner would be asked."""
    path = space.model
    if not isinstance(path, str):
        (folder / "config.json").write_text(json.dumps(path))
        path = str(folder / "config.json")
    deployment = Deployment.model_validate({"models": [{"path": path}]})
    return Question(deployment, space.hardware, WorkloadSpec(**space.spec), Slo.parse(space.slo))


def exhaustive(trials: Trials, search: Search[Design], designs: Sequence[Design]) -> dict[Design, Knee]:
    """The knee of every design that is possible."""
    found = {}
    for design in designs:
        try:
            found[design] = search.knee(design, trials.expected(design), ROUNDS[-1])
        except ArmillaryError:
            continue
    return found


def _knee(trials: Trials, design: Design) -> tuple[Knee | None, int, float]:
    """Of one design, with how many simulations, and the seconds on their clocks."""
    seconds = trials.seconds
    search = Search(trials)
    knees = exhaustive(trials, search, [design])
    return knees.get(design), search.found.trials, trials.seconds - seconds


def fresh(trials: Trials, asked: tuple[Design, float]) -> float:
    """The knee of a design in workloads that no search has seen.

    Args:
        asked: the design, and what its knee was found to be.
    """
    design, near = asked

    def trial(one: Design, rate: float, seed: int) -> bool:
        return trials(one, rate, AFTER + seed)

    return Search(trial).knee(design, near, FRESH).rate


def compare(space: Space, folder: Path, processes: int = 1) -> dict[str, Any]:
    """Both searches of a space."""
    question, designs = question_of(space, folder), space.designs

    def price(design: Design) -> float:
        return float(design.devices)

    began = time.process_time()
    trials = Trials(question)
    search = Search(trials, price)
    found = search.run(designs, trials.expected)
    planner = {
        "simulations": found.trials, "requests": trials.simulated, "seconds": trials.seconds,
        "cpu_s": time.process_time() - began,
    }  # fmt: skip
    chosen, chosen_knee = found.ranking[0]
    whole = Trials(question)
    with Crew(whole, processes) as crew:
        looked = list(crew.each(_knee, designs))
        simulated = whole.simulated
        knees = {design: knee for design, (knee, _, _) in zip(designs, looked, strict=True) if knee is not None}
        worth = {design: knee.rate / price(design) for design, knee in knees.items()}
        best = max(worth, key=lambda design: worth[design])
        again = list(crew.each(fresh, [(design, knees[design].rate) for design in (chosen, best)]))
    unseen = again[0] / price(chosen) / (again[1] / price(best))
    every = {
        "simulations": sum(count for _, count, _ in looked), "requests": simulated,
        "seconds": sum(seconds for _, _, seconds in looked),
    }  # fmt: skip
    shares: dict[str, float] = {name: planner[name] / every[name] for name in ("simulations", "requests", "seconds")}
    return {
        "designs": len(designs),
        "possible": len(knees),
        "never_simulated": len(found.unlikely),
        "slo": space.slo,
        "best": {"design": best.title, "rate_per_device": worth[best]},
        "chosen": {
            "design": chosen.title,
            "rate_per_device": worth[chosen],
            "rate_it_found": chosen_knee.rate / price(chosen),
        },
        "within_2_percent": sum(value >= BARS["goodput"] * worth[best] for value in worth.values()),
        "goodput": worth[chosen] / worth[best],
        "goodput_unseen": unseen,
        "planner": planner,
        "exhaustive": every,
        "shares": shares,
        "holds": worth[chosen] >= BARS["goodput"] * worth[best] and shares["simulations"] <= BARS["simulations"],
    }


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", nargs="+", choices=sorted(SPACES), default=list(SPACES))
    parser.add_argument("--processes", type=int, default=processors())
    parser.add_argument("--json", type=Path, default=RESULTS / "planner_search.json", help="%(default)s")
    options = parser.parse_args()
    told: dict[str, Any] = {"bars": BARS, "spaces": {}}
    for name in options.space:
        with tempfile.TemporaryDirectory() as folder:
            found = compare(SPACES[name], Path(folder), options.processes)
        told["spaces"][name] = found
        say(
            f"{name}: {found['goodput']:.3f} of the best ({found['goodput_unseen']:.3f} in unseen workloads), "
            f"{found['shares']['simulations']:.1%} of the simulations "
            f"({found['planner']['simulations']} of {found['exhaustive']['simulations']}), "
            f"{found['shares']['requests']:.1%} of the requests, {found['shares']['seconds']:.1%} of the seconds; "
            f"{found['within_2_percent']} of {found['possible']} designs are within 2 %"
        )
        write_text(options.json, json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
