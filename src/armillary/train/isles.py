"""`armillary train isles`: from nothing to a model folder."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from armillary.errors import ArmillaryError, Code
from armillary.models.decoder import Decoder
from armillary.train.chat import END, STOP
from armillary.train.export import export
from armillary.train.levels import examples, levels
from armillary.train.loop import StepReport, Trainer
from armillary.train.settings import Settings, Shape
from armillary.train.stream import MIXTURE, document
from armillary.train.vocabulary import train_tokenizer
from armillary.world.split import Split

REPORT_SEED = 2
"""Of the held-out tasks that reported levels come from; the mixture was steered by others."""


def train_isles(
    out: Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    resume: bool = True,
    seed: int = 0,
    checkpoint_minutes: float = 3.0,
    report_count: int = 400,
    tokenizer_documents: int = 20_000,
    settings: Settings | None = None,
    shape: Shape | None = None,
    console: Console | None = None,
    on_step: Callable[[StepReport], None] | None = None,
) -> dict[str, Any]:
    """Trains tokenizer and model of the Isles and writes them to `out` as a Hugging Face folder.

    A checkpoint of the run is kept in `out/.training`; the folder itself is complete after every checkpoint, so
    that a model in training can be served.

    Args:
        out: the folder to write.
        minutes: stop after so many minutes of training by the wall, counted over resumptions, whatever step is
            reached. The learning rate follows `steps`, so a run stopped early is less settled. None: no limit.
        steps: optimizer steps; by default the number the bundled model was trained for.
        resume: go on from `out/.training` where there is one; else, and without, start over.
        seed: of the text and of the first weights.
        checkpoint_minutes: time between checkpoints.
        report_count: held-out items of each kind that the final levels are measured on.
        tokenizer_documents: documents that the tokenizer is trained on.
        settings: of the optimizer and the data, where not the bundled model's; `steps` and `seed` win over it.
        shape: of the model, where not the bundled model's.
        console: where progress is drawn; by default standard error.
        on_step: called after every step.

    Returns: the report that the model card states: steps, tokens, targets, seconds, cpu_seconds, levels on held-out
    tasks and how many items each was measured on.
    """
    settings = replace(settings or Settings(), seed=seed)
    if steps is not None:
        settings = replace(settings, steps=steps)
    if minutes is not None and minutes <= 0:
        raise ArmillaryError(Code.INVALID_REQUEST, f"minutes must be positive, given {minutes}", "minutes")
    shape = shape or Shape()
    console = console or Console(stderr=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the shards are the parallelism
    try:
        tokenizer = train_tokenizer(shape.vocab_size, settings.seed, tokenizer_documents)
        return _train(
            out, tokenizer, minutes, resume, checkpoint_minutes, report_count, settings, shape, console, on_step
        )
    finally:
        torch.set_num_threads(threads)


def _train(
    out: Path,
    tokenizer: Tokenizer,
    minutes: float | None,
    resume: bool,
    checkpoint_minutes: float,
    report_count: int,
    settings: Settings,
    shape: Shape,
    console: Console,
    on_step: Callable[[StepReport], None] | None,
) -> dict[str, Any]:
    identity = {"shape": asdict(shape), "vocabulary": hashlib.blake2b(tokenizer.to_str().encode()).hexdigest()[:16]}
    trainer = Trainer(new_decoder(shape, tokenizer, settings.seed), tokenizer, settings, identity)
    folder = out / ".training"
    if resume and trainer.resume(folder):
        console.print(f"resuming at step {trainer.progress.step} of {settings.steps}")
    progress = trainer.progress
    deadline = minutes * 60 if minutes is not None else float("inf")
    saved = time.perf_counter()
    columns = (
        TextColumn("[bold]isles[/]"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f} · {task.fields[rate]:,.0f} tokens/s ·"),
        TimeElapsedColumn(),
        TextColumn("· left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, speed_estimate_period=120) as bar:
        shown = bar.add_task("train", total=settings.steps, completed=progress.step, loss=float("nan"), rate=0.0)
        smooth: float | None = None

        def stepped(report: StepReport) -> None:
            nonlocal saved, smooth
            smooth = report.loss if smooth is None else 0.98 * smooth + 0.02 * report.loss
            rate = progress.tokens / max(progress.seconds, 1e-9)
            bar.update(shown, completed=report.step, loss=smooth, rate=rate)
            if on_step is not None:
                on_step(report)

        def evaluated(found: dict[str, float]) -> None:
            nonlocal saved
            row = "  ".join(f"{name} {level:.2f}" for name, level in found.items())
            average = float("nan") if smooth is None else smooth
            console.print(
                f"step {progress.step}  {progress.tokens / 1e6:.2f}M tokens  {progress.seconds / 60:.1f} min  "
                f"cpu {progress.cpu_seconds / 60:.1f} min  loss {average:.4f}  held-out: {row}",
                soft_wrap=True,
            )
            if time.perf_counter() - saved >= 60 * checkpoint_minutes:
                trainer.save(folder)
                export(trainer.decoder, tokenizer, out, _report(trainer, found, settings.evaluate_count))
                saved = time.perf_counter()

        trainer.run(settings.steps, stepped, evaluated, stop=lambda: progress.seconds >= deadline)
    trainer.save(folder)
    asked = examples(tokenizer, Split.HELD_OUT, report_count, REPORT_SEED)
    found = levels(trainer.decoder, asked)
    report = _report(trainer, found, report_count)
    export(trainer.decoder, tokenizer, out, report)
    return report


def new_decoder(shape: Shape, tokenizer: Tokenizer, seed: int) -> Decoder:
    """A decoder with first weights drawn from `seed`."""
    end, stop = (tokenizer.encode(mark, add_special_tokens=False).ids[0] for mark in (END, STOP))
    decoder = Decoder(shape.spec([end, stop], stop))
    initialise(decoder, seed)
    return decoder


def initialise(decoder: Decoder, seed: int) -> None:
    """Matrices keep the size of what they multiply (standard deviation 1 / sqrt(inputs)); those that write to the
    residual stream start at zero, so that it starts as the embeddings alone. A narrow model learns to look things up
    much sooner from these than from the customary 0.02."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
            elif name.endswith((".out", ".down")):
                parameter.zero_()
            else:
                std = 0.1 if name == "embed" else parameter.shape[1] ** -0.5
                parameter.normal_(0.0, std, generator=generator)


def _report(trainer: Trainer, found: dict[str, float], count: int) -> dict[str, Any]:
    progress = trainer.progress
    sample = (document(trainer.tokenizer, trainer.settings.seed, number, MIXTURE) for number in range(500))
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "targets": progress.targets,
        "seconds": progress.seconds,
        "cpu_seconds": progress.cpu_seconds,
        "machine": f"{os.cpu_count()} cores of {platform.machine()}",
        "longest": max(len(item.tokens) for item in sample),
        "levels": found,
        "count": count,
        "history": progress.history,
    }
