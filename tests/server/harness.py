"""A server to test against: the real application over a real port, on a model folder that a test can make.

The executor is a script unless a test asks for a real model: it "generates" the bytes of a text, so that what
a client should read is known beforehand, at any speed, with any fault.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from armillary.core.config import SchedulerConfig
from armillary.core.engine import Engine
from armillary.core.scheduler import Scheduler
from armillary.core.step import Step, StepResult
from armillary.deployment import ServerSettings
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.clock import WallClock
from armillary.runtime.sampling import TokenLogprobs
from armillary.server.life import Life
from armillary.server.listener import listen, url_of
from armillary.server.served import Served
from armillary.server.service import Service

NAME = "org/tiny"
SCRIPT = "Grüße aus dem Archipel 🏝️: 世界 bleibt 👩‍👩‍👧 rund. Ende STOP hier! "
EOS, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VOCAB = 259
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of single bytes: token b is the byte b, then three control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    spelling = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(moved)}
    assert sorted(spelling) == alphabet
    backend = tokenizers.Tokenizer(models.BPE(vocab=spelling, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS, START, END])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": END, "chat_template": TEMPLATE, "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258]}))


def write_model(folder: Path) -> None:
    """A random model of a few thousand parameters with the tokenizer above, as an ordinary folder."""
    import torch

    from armillary.models.checkpoint import save_decoder
    from armillary.models.config import spec_from_config
    from armillary.models.decoder import Decoder

    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    decoder = Decoder(spec_from_config(config))
    decoder.initialise(0.3, torch.Generator().manual_seed(11))
    save_decoder(decoder, folder)
    write_tokenizer(folder)


def torch_executor(folder: Path, num_blocks: int, block_size: int) -> Any:
    """The executor that serves such a folder."""
    import torch

    from armillary.models.checkpoint import load_decoder
    from armillary.runtime.executor import TorchExecutor

    torch.set_num_threads(1)
    decoder = load_decoder(folder, torch.float32)
    return TorchExecutor(decoder, decoder.spec, num_blocks, block_size)


class ScriptedExecutor:
    """Every sequence generates the bytes of a script, one per token, over and over.

    With a temperature above 0 it begins at a place that depends on seed and choice.

    Attributes:
        step_s: seconds a step takes.
        fault: called with each step before it runs; may raise, or hang.
    """

    def __init__(self, script: str = SCRIPT, step_s: float = 0.0) -> None:
        self.script = script.encode()
        self.step_s = step_s
        self.fault: Callable[[Step], None] = lambda step: None
        self.max_batch = 0

    def run(self, step: Step) -> StepResult:
        self.fault(step)
        if self.step_s:
            time.sleep(self.step_s)
        self.max_batch = max(self.max_batch, len(step.entries))
        tokens: list[int] = []
        details: list[object] = []
        prompts: dict[str, object] = {}
        for entry in step.entries:
            params: Any = entry.sequence.request.sampling
            for row in range(entry.rows):
                index = entry.sequence.index + row
                place = entry.sequence.generated
                if params.temperature > 0:
                    place += (params.seed * 7 + index * 11) % len(self.script)
                token = self.script[place % len(self.script)]
                tokens.append(token)
                likeliest = [(token, -0.5), (65, float("-inf")), *((66 + i, -2.0 - i) for i in range(20))]
                top = likeliest[: params.logprobs or 0]
                details.append(TokenLogprobs(-0.5, top) if params.logprobs is not None else None)
            if entry.rows and params.prompt_logprobs is not None and entry.sequence.generated == 0:
                prompt = entry.sequence.request.prompt
                prompts[entry.sequence.request.id] = [None, *(TokenLogprobs(-1.5, [(t, -1.5)]) for t in prompt[1:])]
        return StepResult(tokens, details, prompts)


class Running:
    """A server in a thread, and clients of it."""

    def __init__(
        self,
        folder: Path,
        executor: Any = None,
        settings: ServerSettings | None = None,
        patience_s: float = 60.0,
        vocab_size: int = VOCAB,
        defaults: dict[str, Any] | None = None,
        **limits: Any,
    ) -> None:
        self.executor = executor or ScriptedExecutor()
        self.settings = settings or ServerSettings(port=0, drain_s=2.0)
        self.service = Service(self.settings, NAME, patience_s)
        self.engine: Engine | None = None
        self.error: BaseException | None = None
        self._clients: dict[Any, openai.OpenAI] = {}
        self._http = httpx.Client(timeout=30)
        self._config = SchedulerConfig(**{"num_blocks": 256, "max_context": 512, "block_size": 8, **limits})
        self._folder = folder
        self._vocab_size = vocab_size
        self._defaults = defaults or {}
        listener = listen("127.0.0.1", 0)
        self.url = url_of(listener)
        self._life: Life | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, args=(listener,), daemon=True)
        self._thread.start()

    def _run(self, listener: Any) -> None:
        self._life = Life(self.service, listener, self._load)
        try:
            self._life.run()
        except BaseException as error:
            self.error = error

    def _load(self, loop: asyncio.AbstractEventLoop) -> Served:
        if not self._folder.joinpath("tokenizer.json").exists():
            write_tokenizer(self._folder)
        tokenizer = Tokenizer.from_folder(self._folder)
        self.engine = Engine(Scheduler(self._config), self.executor, WallClock(), lambda events: None)
        served = Served.start(
            NAME,
            self.engine,
            tokenizer,
            self._vocab_size,
            self._defaults,
            lambda: secrets.randbits(63),
            self.service.metrics,
            loop,
        )
        self._loop = loop
        return served

    def wait(self, path: str = "/ready", status: int = 200, seconds: float = 20.0) -> None:
        """Until a probe answers so."""
        until = time.monotonic() + seconds
        last: Any = None
        while time.monotonic() < until:
            try:
                last = self.get(path).status_code
                if last == status:
                    return
            except httpx.TransportError as error:
                last = error
            time.sleep(0.02)
        raise AssertionError(f"{path} must answer {status}, given {last!r} after {seconds} s")

    def stop(self, seconds: float = 20.0) -> None:
        if self._loop is not None and self._life is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._life.stop)
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the server must stop"

    def begin_to_stop(self) -> None:
        assert self._loop is not None and self._life is not None
        self._loop.call_soon_threadsafe(self._life.stop)

    def client(self, retries: int = 0, **options: Any) -> openai.OpenAI:
        options.setdefault("api_key", "none")
        key = (retries, *sorted(options.items()))
        if key not in self._clients:
            self._clients[key] = openai.OpenAI(base_url=f"{self.url}/v1", max_retries=retries, timeout=30, **options)
        return self._clients[key]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._http.get(self.url + path, **options)

    def post(self, path: str, body: Any = None, **options: Any) -> httpx.Response:
        if body is not None:
            options["json"] = body
        return self._http.post(self.url + path, **options)

    def metrics(self) -> dict[str, float]:
        """Sample (with its labels) -> value."""
        lines = self.get("/metrics").text.splitlines()
        return {k: float(v) for k, v in (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))}

    def quiet(self, seconds: float = 1.0) -> dict[str, float]:
        """The gauges once they are all zero; fails if that takes longer."""
        until = time.monotonic() + seconds
        while True:
            gauges = {
                name: value
                for name, value in self.metrics().items()
                if name in ("armillary_sequences_running", "armillary_sequences_waiting", "armillary_kv_blocks_used")
            }
            if not any(gauges.values()) or time.monotonic() > until:
                assert gauges and not any(gauges.values()), gauges
                return gauges
            time.sleep(0.02)


def frames(response: httpx.Response) -> list[str]:
    """The raw events of a stream, each without its `data: `; comments left out."""
    text = response.text
    assert text.endswith("\n\n")
    events = text[:-2].split("\n\n")
    assert all("\n" not in event for event in events), "an event must be one line"
    return [event.removeprefix("data: ") for event in events if not event.startswith(":")]
