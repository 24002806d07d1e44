"""The command line of the bench: `python -m bench.peers --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import psutil

from .environments import ENGINES, ROOT, Unavailable
from .record import Results, read
from .run import Choice, Session
from .shapes import SHAPES
from .table import render
from .workloads import TITLES

PRECISIONS = ("bf16", "int8", "int4")
RESULTS = ROOT / "bench" / "results" / "peers.json"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers",
        description="Armillary beside other engines: same machine, models, token ids and lengths.",
        epilog="Workloads: " + "; ".join(f"{name} {title}" for name, title in TITLES.items()) + ".",
    )
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES), metavar="NAME",
                        help=f"of {', '.join(ENGINES)}")  # fmt: skip
    parser.add_argument("--workloads", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    shapes = [name for name in SHAPES if name != "tiny"]
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=shapes)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every length; recorded in the table")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or os.cpu_count() or 1,
                        help="of every engine; 1 is timed by the processor, more by the wall")  # fmt: skip
    parser.add_argument("--minutes", type=float, help="begin nothing after so many, installing and converting aside")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results so far, which are gone on with")
    parser.add_argument("--fresh", action="store_true", help="forget the results so far")
    parser.add_argument("--prepare", action="store_true", help="only install and convert")
    parser.add_argument("--table", action="store_true", help="only print the table of the results so far")
    options = parser.parse_args(arguments)
    if options.scale <= 0 or options.repeats < 1 or options.threads < 1:
        parser.error("--scale must be above 0, --repeats and --threads at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    seconds = None if options.minutes is None else options.minutes * 60
    choice = Choice(
        options.engines, options.workloads, options.precisions, options.shapes, options.repeats, options.scale,
        options.threads, seconds,
    )  # fmt: skip
    status = 0
    try:
        if options.table:
            machine, records = read(options.out)
            print(render(records, machine))
            return 0
        results = Results(options.out, options.threads, options.fresh)
        session = Session(choice, results, lambda line: print(line, file=sys.stderr, flush=True))
        try:
            session.prepare()
            if not options.prepare:
                session.run()
        except KeyboardInterrupt:
            status = 130  # what there is so far is kept, and a table of it is better than a traceback
    except (ValueError, OSError, Unavailable) as error:
        print(error, file=sys.stderr)
        return 2
    print(render(results.records, results.machine))
    return status


def _interrupted(number: int, frame: FrameType | None) -> None:
    """Asked to end is ended as by Ctrl-C: with every engine's process."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    sys.exit(main())
