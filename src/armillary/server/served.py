"""A model that is ready to answer, and everything that its endpoints need of it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.recent import Recent
from armillary.core.snapshot import kept_blocks
from armillary.models.calls.choose import ReplyFormat
from armillary.models.pooling import Kind, PoolingSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.prepare import UNSAID, Preparer
from armillary.runtime.worker import EngineWorker
from armillary.server.mailbox import Mailbox
from armillary.server.metrics import EngineState, ServerMetrics
from armillary.server.observe import ObservedExecutor
from armillary.version import __version__

log = logging.getLogger("armillary.server")


@dataclass(frozen=True)
class Served:
    """One model behind one engine.

    Attributes:
        name: what clients ask for in `model`.
        preparer: makes requests, and refuses on arrival what could never fit.
        defaults: sampling values that the model's makers recommend, for fields that a client leaves unset.
        seeds: draws the seed of a request that brings none.
        clock: the engine's clock, in whose seconds deadlines are.
        recent: the engine's latest steps; None where none are remembered.
        kept: counts the blocks that only keep a prefix for later.
        epoch: names this engine among those that served the model before and after it.
        fingerprint: changes when the same seed may give other tokens, which is when the build changes.
    """

    name: str
    worker: EngineWorker
    preparer: Preparer
    defaults: Mapping[str, Any]
    seeds: Callable[[], int]
    mailbox: Mailbox
    clock: Callable[[], float]
    recent: Recent | None = None
    kept: Callable[[], int] = lambda: 0
    epoch: str = field(default_factory=lambda: secrets.token_hex(8))
    fingerprint: str = f"armillary-{__version__}"
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def start(
        cls,
        name: str,
        engine: Engine,
        tokenizer: Tokenizer,
        vocab_size: int,
        defaults: Mapping[str, Any],
        seeds: Callable[[], int],
        metrics: ServerMetrics,
        loop: asyncio.AbstractEventLoop,
        pooling: PoolingSpec | None = None,
        replies: ReplyFormat = UNSAID,
    ) -> Served:
        """Give the engine its thread, its observers and its way to the loop."""
        engine.executor = ObservedExecutor(engine.executor, engine.clock, metrics, name)
        metrics.expect(name)
        preparer = Preparer(tokenizer, engine.scheduler.config, vocab_size, replies=replies, pooling=pooling)
        if tokenizer.chat_template is not None:
            log.info("%s: %s", name, preparer.replies.describe())
        return cls(
            name,
            EngineWorker(engine),
            preparer,
            defaults,
            seeds,
            Mailbox(loop),
            engine.now,
            engine.recent,
            partial(kept_blocks, engine),
        )

    def state(self) -> EngineState:
        """What metrics read of it."""
        return EngineState(self.worker.stats(), self.kept(), self.worker.progress)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.preparer.tokenizer

    @property
    def kind(self) -> Kind:
        """What the model does: generate, give vectors, or score pairs of texts."""
        return "decoder" if self.preparer.pooling is None else self.preparer.pooling.kind

    @property
    def limits(self) -> SchedulerConfig:
        """The scheduler's configuration."""
        return self.preparer.config

    @cached_property
    def longest_token(self) -> int:
        """Most bytes that one token of the vocabulary stands for."""
        return max(1, *(len(self.tokenizer.token_bytes(token)) for token in range(self.tokenizer.vocab_size)))
