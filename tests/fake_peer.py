"""An engine for the tests of `bench/peers` that computes nothing: `FAKE_PEER` in its environment says how it fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bench.peers.protocol import About, Batch, Load, Tokens, serve


class Fake:
    about = About({"bf16": "nothing at all"}, missing={"int8": "knows no integers"}, environment={"FAKE_PEER": ""})

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        if os.environ["FAKE_PEER"] == "cannot convert":
            raise ValueError("the checkpoint is round")
        (target / "model").write_text("weights", encoding="utf-8")

    def load(self, load: Load) -> dict[str, str]:
        assert (load.model / "model").read_text(encoding="utf-8") == "weights"
        if os.environ["FAKE_PEER"] != "breaks off":
            print("this must not get between the lines of JSON")
        return {"version": "1"}

    def prepare(self, batch: Batch) -> None:
        self.prepared = len(batch.prompts)

    def run(self, batch: Batch) -> list[Tokens]:
        assert self.prepared == len(batch.prompts)
        if os.environ["FAKE_PEER"] == "dies" and len(batch.prompts) > 2:
            print("out of luck", file=sys.stderr, flush=True)
            os._exit(7)
        if os.environ["FAKE_PEER"] == "breaks off" and len(batch.prompts) > 2:
            os.write(STANDARD_OUTPUT, b'{"seconds": 1')
            os.kill(os.getpid(), signal.SIGILL)
        if os.environ["FAKE_PEER"] == "hangs" and len(batch.prompts) > 2:
            child = subprocess.Popen(["sleep", "1000"])
            Path(os.environ["FAKE_CHILD"]).write_text(str(child.pid), encoding="utf-8")
            child.wait()
        if os.environ["FAKE_PEER"] == "stops early":
            return [[0] for _ in batch.prompts]
        longest = max(batch.outputs)
        time.sleep(0.05 / longest if os.environ["FAKE_PEER"] == "shrinks" else 0.001 * longest)
        return [[prompt[0]] * output for prompt, output in zip(batch.prompts, batch.outputs, strict=True)]


class Dies(Fake):
    about = About({"bf16": ""}, environment={"FAKE_PEER": "dies"})


class CannotConvert(Fake):
    about = About({"bf16": ""}, environment={"FAKE_PEER": "cannot convert"})


class StopsEarly(Fake):
    about = About({"bf16": ""}, environment={"FAKE_PEER": "stops early"})


class BreaksOff(Fake):
    about = About({"bf16": ""}, environment={"FAKE_PEER": "breaks off"})


class Shrinks(Fake):
    about = About({"bf16": ""}, environment={"FAKE_PEER": "shrinks"})


class Hangs(Fake):
    about = About({"bf16": ""}, environment={"FAKE_PEER": "hangs"})


if __name__ == "__main__":
    STANDARD_OUTPUT = os.dup(1)  # as it is before `serve` turns it away
    serve(Fake())
