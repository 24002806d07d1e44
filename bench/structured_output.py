"""What a grammar costs a step, and what forced tokens save, on the bundled model.

    python -m bench.structured_output [--requests 8] [--repeats 5] [--json PATH]

Three batches of the same requests: free text of the same length, constrained without forced tokens, constrained with
them. The two constrained ones generate the same tokens, which is checked. Processor milliseconds, so that other work on
the machine counts little; batches alternate, and ratios are medians over rounds with their spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from armillary import LLM, SamplingParams

SCHEMA = {
    "type": "object",
    "properties": {
        "harbour": {"type": "string", "maxLength": 16},
        "destination": {"type": "string", "maxLength": 16},
        "hours": {"type": "integer", "minimum": 0, "maximum": 24},
        "weather": {"enum": ["calm", "storm", "fog"]},
    },
    "required": ["harbour", "destination", "hours", "weather"],
    "additionalProperties": False,
}
SPARE = {"threads": 1, "prefix_cache": False}


def measure(llm: LLM, prompts: list[str], params: list[SamplingParams]) -> tuple[float, list[list[int]]]:
    """Processor milliseconds per generated token, and the tokens."""
    started = time.process_time()
    outputs = llm.generate(prompts, params)
    spent = time.process_time() - started
    tokens = [output.token_ids for output in outputs]
    return 1e3 * spent / sum(map(len, tokens)), tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prompts = [f"Ferry {number}, as JSON: " for number in range(options.requests)]
    rounds: list[tuple[float, float, float]] = []
    with LLM("isles", **SPARE) as with_forced, LLM("isles", forced_tokens=False, **SPARE) as without:
        held = [
            SamplingParams(grammar=llm.grammar("json_schema", SCHEMA), temperature=0, max_tokens=120)
            for llm in (with_forced, without)
        ]
        for number in range(options.repeats + 1):
            plain, tokens = measure(without, prompts, [held[1]] * len(prompts))
            forced, same = measure(with_forced, prompts, [held[0]] * len(prompts))
            if same != tokens:
                raise SystemExit("tokens differ with forced tokens on and off")
            lengths = [SamplingParams(temperature=0, max_tokens=len(own), ignore_eos=True) for own in tokens]
            free, _ = measure(without, prompts, lengths)
            if number:  # the first round warms up
                rounds.append((free, plain, forced))
        stats = with_forced.stats().counters
        share = stats.forced_tokens / stats.generated_tokens
    found = {
        "requests": options.requests,
        "rounds": len(rounds),
        "free_ms": statistics.median(free for free, _, _ in rounds),
        "grammar_over_free": _spread([plain / free for free, plain, _ in rounds]),
        "forced_over_grammar": _spread([forced / plain for _, plain, forced in rounds]),
        "forced_share": share,
    }
    print(json.dumps(found, indent=2))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _spread(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}


if __name__ == "__main__":
    main()
