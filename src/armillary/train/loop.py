"""The training loop: one process, one decoder, one stream of packed documents."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from armillary.models.decoder import Decoder
from armillary.models.packed import PackedAttention, packed_positions
from armillary.train import resume
from armillary.train.levels import examples, levels
from armillary.train.mixture import adapt
from armillary.train.muon import Muon
from armillary.train.settings import Settings
from armillary.train.stream import MIXTURE, Batch, step_from
from armillary.world.split import Split

DEVELOPMENT_SEED = 1
"""Held-out tasks that steer the mixture come from this seed; reported levels never do."""


@dataclass(frozen=True)
class StepReport:
    """What one step did. `loss` is in nats per target token; `tokens` counts all, `targets` those in the loss."""

    step: int
    loss: float
    tokens: int
    targets: int
    learning_rate: float


def loss_of(decoder: Decoder, batch: Batch) -> tuple[torch.Tensor, int]:
    """Summed cross-entropy of the batch's targets in nats, and how many there are. Logits are made for targets only."""
    rows = (batch.labels >= 0).nonzero()[:, 0]
    attend = PackedAttention(decoder.spec, batch.lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_native_bf16()):
        hidden = decoder(batch.tokens, packed_positions(batch.lengths), attend)
        logits = decoder.logits(hidden.index_select(0, rows))
    return F.cross_entropy(logits.float(), batch.labels[rows], reduction="sum"), len(rows)


def has_native_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; elsewhere it is emulated and slower than float32."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def schedule(settings: Settings, step: int) -> float:
    """Share of the highest learning rates: linear warm-up, then half a cosine down to the floor. Steps count from 0."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    part = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
    return settings.floor + (1 - settings.floor) * cosine


class Trainer:
    """A run of training: holds the decoder, the optimizer and where the run stands.

    Args:
        decoder: float32, initialised; trained in place.
        tokenizer: of the documents.
        settings: of the run.
        identity: what else identifies the run, by name; a checkpoint with another is refused.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, settings: Settings, identity: dict[str, Any]) -> None:
        self.decoder, self.tokenizer, self.settings = decoder, tokenizer, settings
        # The number of steps may be changed on resuming: the learning rate then follows the new one.
        self.run_identity: dict[str, Any] = {k: v for k, v in {**asdict(settings), **identity}.items() if k != "steps"}
        self.progress = resume.Progress(mixture=dict(MIXTURE))
        inner = {name for name, p in decoder.named_parameters() if p.ndim == 2 and name not in ("embed", "head")}
        matrices = [p for name, p in decoder.named_parameters() if name in inner]
        others = [p for name, p in decoder.named_parameters() if name not in inner]
        self._threads = ThreadPoolExecutor(settings.shards)
        self.muon = Muon(matrices, self._threads, settings.momentum, settings.weight_decay)
        self.adamw = torch.optim.AdamW(others, betas=(0.9, settings.beta2), weight_decay=0.0, fused=True)

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        return self.muon, self.adamw

    def resume(self, folder: Path) -> bool:
        """Continues from the newest checkpoint in `folder`; False where there is none."""
        checkpoint = resume.latest(folder)
        if checkpoint is None:
            return False
        self.progress = resume.load(checkpoint, self.decoder, self.optimizers, self.run_identity)
        return True

    def save(self, folder: Path) -> None:
        resume.save(folder, self.decoder, self.optimizers, self.progress, self.run_identity)

    def step(self) -> StepReport:
        """One optimizer step on the next batch."""
        started, cpu_started = time.perf_counter(), time.process_time()
        settings, progress = self.settings, self.progress
        share = schedule(settings, progress.step)
        self.muon.param_groups[0]["lr"] = share * settings.matrix_rate
        self.adamw.param_groups[0]["lr"] = share * settings.learning_rate
        batches, next_document = step_from(
            self.tokenizer,
            settings.seed,
            progress.next_document,
            progress.mixture,
            settings.tokens_per_step,
            settings.shards,
        )
        loss, count = self.accumulate(batches)
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), settings.clip)
        if not bool(torch.isfinite(norm)):
            raise FloatingPointError(f"the gradient is not finite at step {progress.step}")
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        progress.step += 1
        progress.next_document = next_document
        tokens = sum(len(batch.tokens) for batch in batches)
        progress.tokens += tokens
        progress.targets += count
        progress.seconds += time.perf_counter() - started
        progress.cpu_seconds += time.process_time() - cpu_started
        return StepReport(progress.step, loss, tokens, count, share * settings.learning_rate)

    def accumulate(self, batches: list[Batch]) -> tuple[float, int]:
        """Sets the gradient of the mean loss over all targets of all batches, however they are dealt: losses are
        summed, and divided once by the count of targets. Returns that mean and the count."""
        parameters = list(self.decoder.parameters())

        def gradient(batch: Batch) -> tuple[float, int, tuple[torch.Tensor, ...]]:
            total, count = loss_of(self.decoder, batch)
            return float(total.detach()), count, torch.autograd.grad(total, parameters)

        parts = list(self._threads.map(gradient, batches))
        count = sum(part[1] for part in parts)
        for index, parameter in enumerate(parameters):
            parameter.grad = torch.stack([part[2][index] for part in parts]).sum(0) / count
        return sum(part[0] for part in parts) / count, count

    def evaluate(self) -> dict[str, float]:
        """Levels on development tasks; adapts the mixture to them and records both."""
        found = levels(
            self.decoder,
            examples(
                self.tokenizer,
                Split.HELD_OUT,
                self.settings.evaluate_count,
                DEVELOPMENT_SEED,
            ),
        )
        self.progress.mixture = adapt(MIXTURE, found)
        self.progress.history.append(
            {
                "step": self.progress.step,
                "tokens": self.progress.tokens,
                "seconds": round(self.progress.seconds, 1),
                "cpu_seconds": round(self.progress.cpu_seconds, 1),
                "levels": {name: round(level, 4) for name, level in found.items()},
            }
        )
        return found

    def run(
        self,
        until: int,
        on_step: Callable[[StepReport], None] = lambda report: None,
        on_evaluation: Callable[[dict[str, float]], None] = lambda found: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Steps until `until` steps are done or `stop()` is true, evaluating as often as the settings say."""
        while self.progress.step < until and not stop():
            on_step(self.step())
            if self.progress.step % self.settings.evaluate_every == 0:
                on_evaluation(self.evaluate())
