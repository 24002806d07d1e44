"""How an engine spends memory and time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from armillary.core.order import ORDERS
from armillary.deployment.group import Settings
from armillary.deployment.size import Size

SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Number formats as they are often written."""


class EngineSettings(Settings):
    """How the engine spends memory and time. Unset values are chosen from the model and the machine, and the
    memory plan prints each choice with its reason."""

    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = Field(
        default="auto",
        description=(
            "Number format of the weights. float32 is exact and the slowest and largest; bfloat16 (or bf16) halves "
            "them; float16 (fp16) has more digits and less range; int8 and int4 quantise any checkpoint as it is read, "
            "to a quarter and an eighth of float32, which decodes that much faster and answers a little worse "
            "(`armillary eval isles` says how much); they need the native kernels. auto takes the checkpoint's own "
            "format, and without native kernels what is fastest on this machine without making a small model worse."
        ),
    )
    quantization_group: int | None = Field(
        default=None,
        description=(
            "Weights that share one scale, with `dtype: int4`: 32, 64 or 128. Larger groups are smaller and less "
            "exact. Unset: 32."
        ),
    )
    int8_activations: bool = Field(
        default=False,
        description=(
            "Multiply integers with integers: what goes into an int8 or int4 matrix is quantised too, token by token. "
            "Prompts go faster where the CPU has such products, and answers are somewhat less exact."
        ),
    )
    kv_dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = Field(
        default="auto",
        description=(
            "Number format of the KV cache. int8, with one scale for each head and token, holds nearly twice the "
            "tokens of bfloat16 in the same memory at a small loss; it needs the native kernels. auto takes that of "
            "the weights, or of the checkpoint where weights are quantised."
        ),
    )
    packed_cache: bool = Field(
        default=True,
        description=(
            "Keep the weights on disk as the native kernels lay them out, beside the checkpoint or in the user's cache "
            "folder, and map them at later starts. Results do not change; off saves disk space of the size of the "
            "weights and packs them at every start. Models of less than 64 million weights are never kept."
        ),
    )
    block_size: int = Field(
        default=16,
        ge=1,
        le=1024,
        description=(
            "Token positions in one KV block. Smaller wastes less memory at the end of each sequence and shares "
            "prefixes more finely; larger means less bookkeeping per step."
        ),
    )
    kv_blocks: int | None = Field(
        default=None,
        ge=1,
        description=(
            "KV blocks in the pool, exactly. Unset: as many as the memory allows and `max_running` sequences of "
            "`max_context` tokens can use. Excludes `kv_memory`."
        ),
    )
    kv_memory: Size | None = Field(
        default=None,
        description=(
            "Memory for the KV pool, such as 2GiB. More holds more sequences and keeps prefixes longer; it comes "
            "out of what the rest of the machine has. Excludes `kv_blocks`."
        ),
    )
    max_context: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Longest prompt plus generation of one sequence, in tokens. Unset: what the model was made for, or less "
            "where the KV pool could not hold one such sequence. A longer request is refused on arrival."
        ),
    )
    max_step_tokens: int = Field(
        default=512,
        ge=1,
        description=(
            "Token budget of one step, over all sequences. Larger steps finish prompts sooner and make every running "
            "stream wait longer for its next token; smaller ones bound that wait."
        ),
    )
    max_chunk_tokens: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Most tokens that one sequence computes in one step, so that one long prompt cannot take the whole budget. "
            "Unset: only `max_step_tokens` bounds it."
        ),
    )
    max_running: int = Field(
        default=64,
        ge=1,
        description=(
            "Most sequences in one step. More raises total throughput until memory bandwidth is used up, and slows "
            "each stream; fewer keeps streams fast and lets others wait."
        ),
    )
    max_waiting: int = Field(
        default=1024,
        ge=1,
        description=(
            "Most requests that may wait for admission; each prompt of a list is one, whatever its `n`. Beyond it they "
            "are refused at once with a time to retry after, which is kinder than a long silence."
        ),
    )
    max_waiting_tokens: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Most tokens (prompts, and what preempted sequences have generated) that may wait for admission. Bounds "
            "the wait where prompts differ much in length. Unset: only `max_waiting` bounds it."
        ),
    )
    order: str = Field(
        default="fcfs",
        description=(
            "Who goes first: `fcfs` by arrival; `priority` by the request's priority, then arrival; `deadline` by the "
            "earliest deadline that can still be met, the others after them."
        ),
    )
    starvation_s: float = Field(
        default=30.0,
        gt=0,
        description=(
            "Seconds after which a waiting request goes before every younger one, whatever the order says. Small "
            "values turn every order into `fcfs`; large ones let low priorities wait longer."
        ),
    )
    prefix_cache: bool = Field(
        default=True,
        description=(
            "Keep the KV of prompts and reuse it where another prompt begins the same, be it in the same step. Results "
            "do not change; off costs the recomputation and saves a little bookkeeping."
        ),
    )
    forced_tokens: bool = Field(
        default=True,
        description=(
            "Write the tokens that a grammar forces (structured output, required tool calls) without a step of the "
            "model for each. Results do not change; off costs those steps."
        ),
    )
    journal: Path | None = Field(
        default=None,
        description=(
            "Write one JSON line per step to this file: what was decided, over which blocks, and how long it took. "
            "Costs some tens of microseconds a step and disk space; it is what makes a run replayable."
        ),
    )
    timeline_steps: int = Field(
        default=4096,
        ge=0,
        le=1_000_000,
        description=(
            "Latest steps kept in memory, for the live view and for the timelines of requests. Costs some microseconds "
            "a step and up to two KiB of memory for each. 0 keeps none: the live view shows no steps, and timelines "
            "only say how long a request took."
        ),
    )
    threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description=(
            "Threads that compute. Unset: one per physical core, fewer where the process may use fewer. More than that "
            "makes small steps slower."
        ),
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description=(
            "Where the seeds of requests that bring none come from. Unset: different at every start. Set: the same "
            "requests in the same order draw the same seeds again."
        ),
    )

    @field_validator("dtype", "kv_dtype", mode="before")
    @classmethod
    def _spelled_out(cls, value: object) -> object:
        return SHORT.get(value, value) if isinstance(value, str) else value

    @field_validator("quantization_group")
    @classmethod
    def _known_group(cls, value: int | None) -> int | None:
        if value not in (None, 32, 64, 128):
            raise ValueError("must be 32, 64 or 128")
        return value

    @field_validator("order")
    @classmethod
    def _known_order(cls, value: str) -> str:
        if value not in ORDERS:
            raise ValueError(f"must be one of {', '.join(sorted(ORDERS))}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kv_blocks is not None and self.kv_memory is not None:
            raise ValueError("must name kv_blocks or kv_memory, given both; leave one of them out")
        if self.quantization_group is not None and self.dtype != "int4":
            raise ValueError(
                f"quantization_group must go with dtype int4, given dtype {self.dtype}; leave it out, or set dtype to "
                "int4"
            )
        if self.int8_activations and self.dtype not in ("auto", "int8", "int4"):
            raise ValueError(
                f"int8_activations must go with weights in int8 or int4, given dtype {self.dtype}; leave it out or set "
                "dtype to one of them"
            )
        if self.max_chunk_tokens is not None and self.max_chunk_tokens > self.max_step_tokens:
            raise ValueError(
                f"max_chunk_tokens must be at most max_step_tokens ({self.max_step_tokens}), given "
                f"{self.max_chunk_tokens}; lower the one or raise the other"
            )
        return self
