"""Is the planner's choice as good as that of an exhaustive search, and at what part of its simulations?

    python -m bench.planner_search [--space NAME ...] [--processes N] [--json PATH] [--known PATH]

Small spaces of designs, each with a model, hardware and a workload of its own. Three are those that the bar is about;
the others were run once, after the search was done, to see whether it was made for these three. The exhaustive search
finds the knee of every design: most of three seeds, by bisection to 2 %, from where queueing theory expects it, and
nothing asked that follows from what was. The planner's search is the one of `armillary plan`. Both ask the same
simulations.

In one workload, a knee is off by a few percent, so the best of many figures is also the luckiest. So both choices are
measured once more in workloads that neither search has seen, and that is what is compared; so are, for a harder
comparison, the other best designs of the exhaustive search. What its own figures say is told beside it. Counted are
simulations, requests in them (those that are simulated to warm up included) and seconds on the simulations' clocks.
The exhaustive figures are kept in the result; `--known` takes those of an earlier one, where only the search changed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
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
from armillary.plan.search import Knee, Round, Search
from armillary.plan.trials import Trials

KEPT = Path(__file__).parent / "results" / "planner_search.json"
BARS = {"goodput": 0.98, "simulations": 0.1}
EXACT = Round(3, 0.0, 0.02)
"""How exactly the exhaustive search finds knees."""
FRESH, AFTER = Round(25, 0.0, 0.01), 1000
"""How exactly choices are compared, and the number of the first workload of that."""
BEST = 3
"""Designs that are the best by the exhaustive search's figures and are measured once more."""


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

    @property
    def asked(self) -> dict[str, Any]:
        """By what a result tells whether it is of this space."""
        return {"model": self.model, "hardware": self.hardware, "spec": self.spec, "slo": self.slo}


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
    "3b-a100": Space(
        llama(3072, 28, 8192), "a100-40",
        {"prompt_length": "lognormal:200,0.8,1500", "output_length": "lognormal:80,0.5,240",
         "prefixes": 30, "prefix_length": 512},
        "ttft p95 300ms, tpot p95 25ms",
        tuple(Design(1, running, tokens, kv_blocks=blocks, prefix_cache=cache) for running, tokens, blocks, cache in
              product((16, 32, 64, 128), (256, 1024), (800, 2000, None), (True, False))),
    ),
    "70b-mi300x": Space(
        llama(8192, 80, 28672), "mi300x",
        {"prompt_length": "lognormal:800,0.7,4000", "output_length": "uniform:40,160"},
        "ttft p90 500ms, tpot p90 60ms",
        grid((1, 2, 4, 8), (16, 32, 64, 128), (512, 1024, 4096)),
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
            found[design] = search.knee(design, trials.expected(design), EXACT)
        except ArmillaryError:
            continue
    return found


def exact(trials: Trials, design: Design) -> dict[str, Any] | None:
    """Of one design: its knee, and what it took to find it; None where it is not possible."""
    requests, seconds = trials.simulated, trials.seconds
    search = Search(trials)
    knees = exhaustive(trials, search, [design])
    if design not in knees:
        return None
    return {
        **asdict(design), "rate": knees[design].rate, "simulations": search.found.trials,
        "requests": trials.simulated - requests, "seconds": trials.seconds - seconds,
    }  # fmt: skip


def fresh(trials: Trials, asked: tuple[Design, float]) -> float:
    """The knee of a design in workloads that no search has seen.

    Args:
        asked: the design, and what its knee was found to be.
    """
    design, near = asked

    def trial(one: Design, rate: float, seed: int) -> bool:
        return trials(one, rate, AFTER + seed)

    return Search(trial).knee(design, near, FRESH).rate


def compare(
    space: Space, folder: Path, processes: int = 1, known: Sequence[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Both searches of a space.

    Args:
        known: what the exhaustive search found of each possible design; None to let it search.
    """
    question, designs = question_of(space, folder), space.designs

    def price(design: Design) -> float:
        return float(design.devices)

    trials = Trials(question)
    search = Search(trials, price, same=trials.same)
    found = search.run(designs, trials.expected)
    planner = {
        "simulations": found.trials, "requests": trials.simulated, "seconds": trials.seconds,
    }  # fmt: skip
    chosen, chosen_knee = found.ranking[0]
    with Crew(Trials(question), processes) as crew:
        looked = list(known) if known is not None else [one for one in crew.each(exact, designs) if one is not None]
        rates = {Design(**{name: one[name] for name in asdict(chosen)}): one["rate"] for one in looked}
        worth = {design: rate / price(design) for design, rate in rates.items()}
        ranked = sorted(worth, key=lambda design: -worth[design])
        again = list(dict.fromkeys((chosen, *ranked[:BEST])))
        measured = crew.each(fresh, [(design, rates[design]) for design in again])
        unseen = {design: rate / price(design) for design, rate in zip(again, measured, strict=True)}
    best = ranked[0]
    every = {name: sum(one[name] for one in looked) for name in ("simulations", "requests", "seconds")}
    shares: dict[str, float] = {name: planner[name] / every[name] for name in every}
    goodput = unseen[chosen] / unseen[best]
    return {
        "asked": space.asked,
        "designs": len(designs),
        "possible": len(looked),
        "simulated": len(found.known),
        "chosen": {
            "design": chosen.title, "rate_per_device": worth[chosen], "unseen": unseen[chosen],
            "rate_it_found": chosen_knee.rate / price(chosen),
        },
        "best": [
            {"design": design.title, "rate_per_device": worth[design], "unseen": unseen[design]}
            for design in ranked[:BEST]
        ],
        "within_2_percent": sum(value >= BARS["goodput"] * worth[best] for value in worth.values()),
        "goodput": goodput,
        "goodput_beside_best_unseen": unseen[chosen] / max(unseen.values()),
        "goodput_by_its_own_figures": worth[chosen] / worth[best],
        "planner": planner,
        "exhaustive": every,
        "shares": shares,
        "holds": goodput >= BARS["goodput"] and shares["simulations"] <= BARS["simulations"],
        "knees": looked,
    }  # fmt: skip


def earlier(path: Path, name: str) -> list[dict[str, Any]]:
    """What the exhaustive search of an earlier result found."""
    said = json.loads(path.read_text())["spaces"].get(name, {})
    if said.get("asked") != json.loads(json.dumps(SPACES[name].asked)) or said["designs"] != len(SPACES[name].designs):
        raise SystemExit(f"--known must hold the space {name} as it is here, given {path}, which does not")
    return list(said["knees"])


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", nargs="+", choices=sorted(SPACES), default=list(SPACES))
    parser.add_argument("--processes", type=int, default=processors())
    parser.add_argument("--json", type=Path, default=KEPT, help="%(default)s; other spaces stay")
    parser.add_argument("--known", type=Path, help="an earlier result whose exhaustive figures are taken")
    options = parser.parse_args()
    told: dict[str, Any] = {"bars": BARS, "spaces": {}}
    if options.json.exists():
        before = json.loads(options.json.read_text())["spaces"]
        told["spaces"] = {name: before[name] for name in SPACES if name in before}
    for name in options.space:
        known = None if options.known is None else earlier(options.known, name)
        with tempfile.TemporaryDirectory() as folder:
            found = compare(SPACES[name], Path(folder), options.processes, known)
        told["spaces"][name] = found
        say(
            f"{name}: {found['goodput']:.3f} of the best ({found['goodput_by_its_own_figures']:.3f} by its figures), "
            f"{found['shares']['simulations']:.1%} of the simulations "
            f"({found['planner']['simulations']} of {found['exhaustive']['simulations']}), "
            f"{found['shares']['requests']:.1%} of the requests, {found['shares']['seconds']:.1%} of the seconds; "
            f"{found['within_2_percent']} of {found['possible']} designs are within 2 %"
        )
        write_text(options.json, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
