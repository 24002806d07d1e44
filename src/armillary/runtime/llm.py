"""The Python interface: a model in this process, batches of prompts, conversations and streams."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from armillary.core.engine import Engine
from armillary.core.request import FinishReason
from armillary.core.step import Event
from armillary.deployment.engine import EngineSettings
from armillary.deployment.explain import checked
from armillary.errors import ArmillaryError, Code
from armillary.models.chat import Message
from armillary.models.pooling import Mode, PoolingSpec
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.embed import Matrix, run_all, stacked
from armillary.runtime.grammar import Grammar, compile_grammar
from armillary.runtime.output import Assembly, Choice, Output, Piece
from armillary.runtime.prepare import Prepared, Preparer
from armillary.runtime.rank import relevances
from armillary.runtime.sampling import SamplingParams
from armillary.runtime.worker import EngineWorker, WorkerStats

Prompt = str | Sequence[int]
Conversation = Sequence[Message]

_RETRY_SECONDS = 0.02
"""Pause before offering again what a full queue refused."""


class LLM:
    """A model, ready to generate. One engine, shared by all callers and threads.

        with LLM("isles") as llm:
            print(llm.generate("Three islands lie", SamplingParams(max_tokens=20))[0].text)

    Args:
        model: a folder in Hugging Face format, a hub id, or `isles`, the bundled model.
        settings: fields of `EngineSettings` (deployment reference); what is unset is chosen from the model
            and the machine.

    Raises:
        ArmillaryError: INVALID_DEPLOYMENT for an unknown or contradictory setting, and what loading finds.
    """

    def __init__(self, model: str | Path = "isles", **settings: Any) -> None:
        chosen = checked(EngineSettings, settings, as_flags=False)
        # What computes is loaded here, not with this module, and not for settings that are wrong.
        from armillary.models.locate import locate
        from armillary.runtime.load import build_engine

        loaded = build_engine(locate(str(model)), chosen, lambda events: None)
        self.plan = loaded.plan
        config = loaded.engine.scheduler.config
        preparer = Preparer(loaded.tokenizer, config, loaded.spec.vocab_size, loaded.seeds, pooling=loaded.pooling)
        self._start(loaded.engine, preparer)

    @classmethod
    def over(cls, engine: Engine, tokenizer: Tokenizer, vocab_size: int, pooling: PoolingSpec | None = None) -> Self:
        """The same interface over an engine that was built elsewhere; it becomes this object's own."""
        llm = cls.__new__(cls)
        llm._start(engine, Preparer(tokenizer, engine.scheduler.config, vocab_size, pooling=pooling))
        return llm

    def _start(self, engine: Engine, preparer: Preparer) -> None:
        self.tokenizer = preparer.tokenizer
        self.worker = EngineWorker(engine)
        self._prepare = preparer
        # The engine's thread must not run into the interpreter's end.
        self._closer = weakref.finalize(self, self.worker.stop)

    # ---------------------------------------------------------------- batches

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Output]:
        """Complete prompts; outputs in their order.

        One prompt's failure is its output's `error`; the others go on. An interrupt cancels all of them.

        Args:
            prompts: a text, token ids, or a list of either.
            params: for all, or one per prompt.
            progress: show a bar on the terminal.
        """
        batch = _prompts(prompts)
        each = _each(params, len(batch))
        pairs = zip(batch, each, strict=True)
        return self._run([partial(self._prepare.prompt, prompt, own) for prompt, own in pairs], progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        progress: bool = False,
        **variables: Any,
    ) -> list[Output]:
        """Answer conversations: one, or a list of them; outputs in their order.

        Args:
            tools: function schemas in OpenAI's form, given to the chat template.
            variables: further variables of the chat template.
        """
        batch = _conversations(messages)
        each = _each(params, len(batch))
        prepare = partial(self._prepare.chat, tools=tools, variables=variables)
        pairs = zip(batch, each, strict=True)
        return self._run([partial(prepare, conversation, own) for conversation, own in pairs], progress)

    # ---------------------------------------------------------------- vectors and scores

    def embed(
        self,
        texts: Prompt | Sequence[Prompt],
        *,
        pooling: Mode | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
    ) -> Matrix:
        """Vectors of texts or token ids, float32 [texts, size], in their order.

        Args:
            pooling: mean, last or (encoders) cls; unset: as the model's folder says, else mean.
            normalize: whether vectors have length 1; unset: as the model's folder says, else yes.
            dimensions: keep so many leading numbers.

        Raises:
            ArmillaryError: INVALID_REQUEST, CONTEXT_LENGTH; what the engine fails with.
        """
        embedder = self._prepare.embedder
        wish = embedder.wish(pooling, normalize, dimensions)
        batch = _prompts(texts)
        requests = [embedder.text(text, wish, param=f"texts[{place}]") for place, text in enumerate(batch)]
        return stacked(run_all(self.worker, requests), dimensions or embedder.pooling.size)

    def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        """How relevant each document is to the query, in their order: a cross-encoder's score from 0 to 1, or the
        cosine of the vectors of a model that has no such head.

        Raises:
            ArmillaryError: as `embed`.
        """
        return relevances(self._prepare.embedder, partial(run_all, self.worker), query, documents)

    def grammar(self, kind: str, source: object = None) -> Grammar:
        """A grammar for `SamplingParams(grammar=...)`: what the answer must be.

        Args:
            kind: `json_object`, `json_schema`, `regex`, `choice` or `lark`.
            source: the schema, the expression, the list of choices, or the grammar (`compile_grammar`).

        Raises:
            ArmillaryError: INVALID_REQUEST, with what cannot be enforced.
        """
        return compile_grammar(kind, source, self.tokenizer)

    # ---------------------------------------------------------------- streams

    async def stream(
        self,
        prompt: Prompt | Conversation,
        params: SamplingParams | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        **variables: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of the answer as they are generated: to a text, token ids, or a conversation (messages).

        Leaving the loop early and closing the generator cancels the request.

        Raises:
            ArmillaryError: as of `Preparer`, and ENGINE_FAILED if the request fails underway.
        """
        chosen = params if params is not None else SamplingParams()
        if not isinstance(prompt, str) and len(prompt) > 0 and isinstance(prompt[0], Mapping):
            prepared = self._prepare.chat(prompt, chosen, tools=tools, variables=variables)  # type: ignore[arg-type]
        else:
            prepared = self._prepare.prompt(prompt, chosen)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[list[Piece]] = asyncio.Queue()
        assembly = self._assembly(prepared)

        def on_events(events: list[Event]) -> None:
            if pieces := assembly.take(events):
                with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
                    loop.call_soon_threadsafe(arrived.put_nowait, pieces)

        open_choices = prepared.request.n
        try:
            await asyncio.wrap_future(self.worker.submit_soon(prepared.request, on_events))
            while open_choices:
                for piece in await arrived.get():
                    if piece.error is not None:
                        raise ArmillaryError(Code.ENGINE_FAILED, piece.error)
                    open_choices -= piece.finish_reason is not None
                    yield piece
        finally:
            if open_choices:
                self.worker.cancel(prepared.request.id)

    # ---------------------------------------------------------------- life

    def stats(self) -> WorkerStats:
        """Counters and gauges of the engine."""
        return self.worker.stats()

    def close(self) -> None:
        """Stop the engine; what is pending ends with an error. Idempotent."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- inside

    def _assembly(self, prepared: Prepared) -> Assembly:
        request_id = prepared.request.id
        return Assembly(
            prepared, self.tokenizer, lambda index: self.worker.cancel(request_id, index, FinishReason.STOP)
        )

    def _run(self, batch: list[Callable[[], Prepared]], progress: bool) -> list[Output]:
        """Run a batch to its end, never with more requests in flight than may wait."""
        outputs: list[Output | None] = [None] * len(batch)
        slots = threading.Semaphore(self.worker.max_waiting)
        jobs: list[_Job] = []
        with _progress(len(batch)) if progress else nullcontext(_ignore) as done:
            try:
                for place, make in enumerate(batch):
                    try:
                        prepared = make()
                    except ArmillaryError as error:
                        outputs[place] = Output("", [], [], error=error)
                        done(0)
                        continue
                    slots.acquire()
                    jobs.append(_Job(place, self._assembly(prepared), slots, done))
                    self._offer(prepared, jobs[-1])
                for job in jobs:
                    job.ended.result()
            except BaseException:
                for job in jobs:
                    self.worker.cancel(job.assembly.output.request_id)
                raise
        for job in jobs:
            outputs[job.place] = job.assembly.output
        return [output for output in outputs if output is not None]

    def _offer(self, prepared: Prepared, job: _Job) -> None:
        """Submit, again and again while the queue is full; another refusal becomes the output's error."""

        def answered(future: Future[None]) -> None:
            error = future.exception()
            if error is None:
                return
            if isinstance(error, ArmillaryError) and error.code is Code.QUEUE_FULL:
                retry = threading.Timer(_RETRY_SECONDS, self._offer, (prepared, job))
                retry.daemon = True
                retry.start()
                return
            known = error if isinstance(error, ArmillaryError) else ArmillaryError(Code.ENGINE_FAILED, str(error))
            job.refused(known)

        self.worker.submit_soon(prepared.request, job.on_events).add_done_callback(answered)


class _Job:
    """One prompt of a batch."""

    def __init__(self, place: int, assembly: Assembly, slots: threading.Semaphore, done: Callable[[int], None]) -> None:
        self.place = place
        self.assembly = assembly
        self.ended: Future[None] = Future()
        self._slots = slots
        self._done = done

    def on_events(self, events: list[Event]) -> None:
        self.assembly.take(events)
        if self.assembly.complete:
            self._end()

    def refused(self, error: ArmillaryError) -> None:
        self.assembly.output.error = error
        self._end()

    def _end(self) -> None:
        if not self.ended.done():
            self._slots.release()
            self._done(sum(len(choice.token_ids) for choice in self.assembly.output.choices))
            self.ended.set_result(None)


def _ignore(tokens: int) -> None:
    """No progress bar."""


class _progress:
    """A bar that counts prompts and shows tokens per second."""

    def __init__(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("generate"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
        )  # fmt: skip
        self._task = self._bar.add_task("generate", total=total, speed="")
        self._tokens = 0

    def __enter__(self) -> Callable[[int], None]:
        self._bar.start()
        return self._advance

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def _advance(self, tokens: int) -> None:
        self._tokens += tokens
        elapsed = self._bar.tasks[0].elapsed or 0.0
        speed = f"{self._tokens / elapsed:,.0f} tokens/s" if elapsed > 0 else ""
        self._bar.update(self._task, advance=1, speed=speed)


def _prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, as a list of prompts."""
    if isinstance(prompts, str):
        return [prompts]
    if len(prompts) > 0 and all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    for item in prompts:
        if isinstance(item, Mapping) or not isinstance(item, Sequence):
            raise TypeError(f"prompts must be texts or lists of token ids, given {item!r:.80}; messages go to chat()")
    return list(prompts)  # type: ignore[arg-type]


def _conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """One conversation or many, as a list of conversations."""
    given: object = messages
    if isinstance(given, str):
        raise TypeError("messages must be a list of messages or of conversations, given a text; it goes to generate()")
    if len(messages) > 0 and isinstance(messages[0], Mapping):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


def _each(params: SamplingParams | Iterable[SamplingParams] | None, count: int) -> list[SamplingParams]:
    """One set of parameters per prompt."""
    if params is None or isinstance(params, SamplingParams):
        return [params if params is not None else SamplingParams()] * count
    each = list(params)
    if len(each) != count:
        raise ArmillaryError(
            Code.INVALID_REQUEST, f"params must be one, or one per prompt, given {len(each)} for {count} prompts"
        )
    return each


__all__ = ["LLM", "Choice", "Output", "Piece"]
