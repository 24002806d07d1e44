"""A server process on a scripted model: `python scripted_process.py FOLDER PORT STEP_S DRAIN_S [die] [keys=FILE]`.

Prints what `serve` prints. With `die`, the engine's thread ends at the first step.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from armillary.cli.main import EXIT_CODES
from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.scheduler import Scheduler
from armillary.deployment import Deployment
from armillary.errors import ArmillaryError
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.clock import WallClock
from armillary.server.keeper import Wanted
from armillary.server.serve import serve
from server.scripted import NAME, VOCAB, ScriptedExecutor, write_tokenizer


def main() -> None:
    folder, port, step_s, drain_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])

    def build(wanted: Wanted) -> Any:
        print("the plan", flush=True)
        write_tokenizer(folder)
        executor = ScriptedExecutor(step_s=step_s)
        if "die" in sys.argv:
            executor.fault = lambda step: sys.exit("the engine's thread is gone")
        engine = Engine(
            Scheduler(SchedulerConfig(num_blocks=256, max_context=512)), executor, WallClock(), lambda events: None
        )
        spec = SimpleNamespace(vocab_size=VOCAB, sampling_defaults={})
        tokenizer = Tokenizer.from_folder(folder)
        wanted.watch.end()
        return SimpleNamespace(
            engine=engine, spec=spec, tokenizer=tokenizer, phases=wanted.watch.laps, seeds=lambda: 1, plan=None,
            pooling=None,
        )  # fmt: skip

    server: dict[str, Any] = {"port": port, "drain_s": drain_s, "log_level": "warning"}
    for argument in sys.argv[5:]:
        if argument.startswith("keys="):
            server["api_key_file"] = argument.removeprefix("keys=")
    deployment = Deployment.model_validate({"models": [{"name": NAME}], "server": server})
    try:
        serve(deployment, build)
    except ArmillaryError as error:
        print(error.message, file=sys.stderr)
        raise SystemExit(EXIT_CODES[error.code]) from None


if __name__ == "__main__":
    main()
