"""`run_bench`: a workload, a server, a report. The options are the flags of `armillary bench`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import ConfigDict, Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from armillary.errors import ArmillaryError, Code
from armillary.measure.client import Drive, calibrate, drive, first_model
from armillary.measure.page import save_page
from armillary.measure.place import check_place
from armillary.measure.presets import workload_of
from armillary.measure.prompts import Calibration
from armillary.measure.punctual import run_punctually
from armillary.measure.record import Outcome, RequestRecord
from armillary.measure.report import Report
from armillary.measure.slo import Slo
from armillary.measure.summary import summarise
from armillary.measure.synthesis import WorkloadSpec
from armillary.measure.target import Target
from armillary.measure.workload import Workload


class BenchOptions(WorkloadSpec):
    """Options of a bench run: where, what (the fields of `WorkloadSpec`), under which service level, saved where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(default="http://127.0.0.1:8000", description="The server, with or without /v1.")
    model: str | None = Field(default=None, description="Model name; the first that the server lists where absent.")
    endpoint: Literal["completions", "chat"] = Field(default="completions", description="Which endpoint to load.")
    api_key: str | None = Field(default=None, repr=False, description="Sent as a bearer token; never saved.")
    timeout: float = Field(default=600.0, gt=0, description="Seconds allowed for one request.")
    temperature: float = Field(default=0.0, ge=0, description="Sampling temperature.")
    ignore_eos: bool = Field(
        default=True,
        description="Ask for exactly the wanted output length (extension; off for servers that refuse it).",
    )
    vocab_size: int | None = Field(
        default=None,
        ge=10,
        description="Send prompts as token ids below this instead of text: exact lengths, completions only.",
    )
    send_policy: bool = Field(default=False, description="Send each request's priority and deadline along (extension).")
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="JSON object merged into every request's body."
    )
    save_workload: Path | None = Field(default=None, description="Write the workload sent, as JSONL.")
    warmup: int = Field(default=1, ge=0, description="Requests sent one by one before the measurement, not counted.")
    slo: str = Field(
        default="",
        description="Service level, as 'ttft p95 500ms, tpot p95 50ms'; metrics are ttft, tpot, itl and e2e.",
    )
    title: str = Field(default="", description="Title of the report.")
    json_path: Path | None = Field(default=None, description="Save the report as JSON.")
    html_path: Path | None = Field(default=None, description="Save the report as a self-contained HTML page.")

    def level(self) -> Slo:
        """The service level that `slo` states."""
        return Slo.parse(self.slo) if self.slo else Slo()


def run_bench(options: BenchOptions, console: Console | None = None) -> Report:
    """Send the workload, save what the options ask for, and return the report.

    Args:
        console: where the progress bar is drawn (the caller's standard error, say); None: no progress bar.
    """
    options.level()  # what cannot be read or written is refused before anything is sent
    for name in ("save_workload", "json_path", "html_path"):
        check_place(getattr(options, name), name)
    workload = workload_of(options)
    if options.save_workload is not None:
        workload.write(options.save_workload)
    report = run_punctually(bench(options, workload, console))
    if options.json_path is not None:
        report.save(options.json_path)
    if options.html_path is not None:
        save_page(report, options.html_path)
    return report


async def bench(options: BenchOptions, workload: Workload, console: Console | None = None) -> Report:
    """`run_bench` without files, inside a running event loop."""
    model = options.model or await first_model(options.url, options.api_key)
    target = Target(
        url=options.url,
        model=model,
        endpoint=options.endpoint,
        api_key=options.api_key,
        timeout=options.timeout,
        temperature=options.temperature,
        ignore_eos=options.ignore_eos,
        vocab_size=options.vocab_size,
        send_policy=options.send_policy,
        extra=options.extra_body,
        seed=options.seed,
    )
    calibration, told = await calibrate(target)
    await _warm_up(workload, target, calibration, options.warmup)
    started = Report.now()
    driven = await _driven(workload, target, calibration, console)
    summary = summarise(
        driven.records,
        driven.duration,
        options.level(),
        workload.offered_rate,
        driven.lag,
        workload.slo_classes,
        workload.users,
    )
    if not told:
        summary.notes.append("The server reported no prompt tokens; prompts were sized at one word a token.")
    return Report(
        title=options.title or f"{model} under load",
        started=started,
        target={"url": target.base, "model": model, "endpoint": target.endpoint},
        workload={
            "requests": len(workload),
            "users": workload.users,
            "file": None if options.workload is None else Path(options.workload).name,
            "origin": workload.origin,
        },
        machine=machine(),
        calibration={"base": calibration.base, "per_word": calibration.per_word},
        summary=summary,
        records=driven.records,
    )


async def _warm_up(workload: Workload, target: Target, calibration: Calibration, count: int) -> None:
    if not count:
        return
    # Other ids give other words: a warm-up must not fill the prefix cache with the prompts to come.
    items = tuple(
        workload.items[i % len(workload)].model_copy(
            update={
                "id": f"warm-up-{i}",
                "arrival": None,
                "session": None,
                "prefix": (),
                "history": 0,
                "think": 0.0,
                "prompt": None,
                "token_ids": None,
            }
        )
        for i in range(count)
    )
    driven = await drive(Workload(items, users=1), target, calibration)
    # A server that sheds is a finding of the measurement, not a reason to call it off.
    if not any(record.outcome in (Outcome.OK, Outcome.SHED) for record in driven.records):
        failed = driven.records[0]
        raise ArmillaryError(
            Code.UNREACHABLE,
            f"a warm-up request must succeed, given {target.url!r}, so: {failed.outcome} {failed.status or ''} "
            f"{failed.error}",
            param="url",
        )


async def _driven(workload: Workload, target: Target, calibration: Calibration, console: Console | None) -> Drive:
    if console is None:
        return await drive(workload, target, calibration)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        # Redrawing costs the client's own time.
        refresh_per_second=4,
    )
    with bar:
        task = bar.add_task("requests", total=len(workload))
        return await drive(workload, target, calibration, _advance(bar, task))


def _advance(bar: Progress, task: Any) -> Callable[[RequestRecord], None]:
    return lambda record: bar.update(task, advance=1)


def machine() -> dict[str, Any]:
    """Where the client runs."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processors": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
    }
