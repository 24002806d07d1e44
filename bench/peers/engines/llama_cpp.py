"""llama.cpp, as `llama-cpp-python` brings and builds it: its C interface, driven as its own batched examples do.

A batch holds the next token of every running sequence and the prompts of newcomers. Sequences have streams of their own
in the cache where all are of one length, which is faster there, and share one buffer where they are not, which is
faster there. A shared prefix is computed once and given to all of them (`llama_memory_seq_cp`), which llama.cpp's
server does not do by itself.
"""

from __future__ import annotations

import ctypes
from collections import deque
from importlib import import_module
from pathlib import Path
from typing import Any

from ..protocol import About, Batch, Load, Tokens, serve

BATCH = 2048
UBATCH = 512


class LlamaCpp:
    about = About(
        {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0, head and embedding Q8_0"},
        packages=("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy"),
        build={"CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"},
    )

    def convert(self, checkpoint: Path, target: Path, precision: str) -> None:
        from .gguf_file import write_gguf

        write_gguf(checkpoint, target / "model.gguf", precision)

    def load(self, load: Load) -> dict[str, str]:
        self.lib: Any = import_module("llama_cpp")
        self.threads = load.threads
        self.context: Any = None
        self.batch: Any = None
        self.lib.llama_backend_init()
        params = self.lib.llama_model_default_params()
        self.model = self.lib.llama_model_load_from_file(str(load.model / "model.gguf").encode(), params)
        if not self.model:
            raise RuntimeError("llama.cpp could not load the file")
        self.vocab = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        return {
            "version": f"llama-cpp-python {self.lib.__version__}",
            "kernels": self.lib.llama_print_system_info().decode().strip(" |").replace(" | ", ", "),
        }

    def prepare(self, batch: Batch) -> None:
        lib = self.lib
        if self.context:
            lib.llama_free(self.context)
            lib.llama_batch_free(self.batch)
        params = lib.llama_context_default_params()
        params.n_seq_max = min(batch.running, len(batch.prompts))
        longest = max(len(p) + n for p, n in zip(batch.prompts, batch.outputs, strict=True))
        longest = -(-longest // 256) * 256
        if batch.shared:
            own = longest - batch.shared
            params.n_ctx = -(-(batch.shared + params.n_seq_max * own) // 256) * 256
        else:
            params.n_ctx = params.n_seq_max * longest
        params.kv_unified = batch.shared > 0 or len(set(map(len, batch.prompts))) > 1
        params.n_batch, params.n_ubatch = BATCH, UBATCH
        params.n_threads = params.n_threads_batch = self.threads
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp could not make a context")
        self.batch = lib.llama_batch_init(BATCH, 0, 1)

    def run(self, batch: Batch) -> list[Tokens]:
        memory = self.lib.llama_get_memory(self.context)
        outputs: list[Tokens] = [[] for _ in batch.prompts]
        if batch.shared:
            self._decode([(token, place, 0, False) for place, token in enumerate(batch.prompts[0][: batch.shared])])
            for slot in range(1, min(batch.running, len(batch.prompts))):
                self.lib.llama_memory_seq_cp(memory, 0, slot, -1, -1)
        waiting = deque(range(len(batch.prompts)))
        free = list(range(min(batch.running, len(batch.prompts))))[::-1]
        running: dict[int, int] = {}  # slot -> request
        computed: dict[int, int] = {}
        while waiting or running:
            while waiting and free:
                slot = free.pop()
                running[slot] = waiting.popleft()
                computed[slot] = batch.shared
            entries: list[tuple[int, int, int, bool]] = []
            for slot, request in running.items():
                prompt, start = batch.prompts[request], computed[slot]
                known = prompt + outputs[request]
                end = min(len(known), start + BATCH - len(entries))
                entries += [(known[place], place, slot, place == len(known) - 1) for place in range(start, end)]
                computed[slot] = end
            for slot, token in self._decode(entries):
                request = running[slot]
                outputs[request].append(token)
                if len(outputs[request]) == batch.outputs[request]:
                    self.lib.llama_memory_seq_rm(memory, slot, batch.shared, -1)
                    del running[slot]
                    free.append(slot)
        return outputs

    def _decode(self, entries: list[tuple[int, int, int, bool]]) -> list[tuple[int, int]]:
        """Compute (token, position, sequence, whether its successor is wanted) entries; (sequence, successor) pairs."""
        import numpy as np

        found = []
        for first in range(0, len(entries), BATCH):
            part, work = entries[first : first + BATCH], self.batch
            work.n_tokens = len(part)
            for place, (token, position, sequence, wanted) in enumerate(part):
                work.token[place], work.pos[place], work.n_seq_id[place] = token, position, 1
                work.seq_id[place][0], work.logits[place] = sequence, wanted
            if status := self.lib.llama_decode(self.context, work):
                raise RuntimeError(f"llama_decode returned {status}")
            for place, (_, _, sequence, wanted) in enumerate(part):
                if wanted:
                    scores = self.lib.llama_get_logits_ith(self.context, place)
                    row = np.ctypeslib.as_array(ctypes.cast(scores, ctypes.POINTER(ctypes.c_float)), (self.vocab,))
                    found.append((sequence, int(row.argmax())))
        return found


if __name__ == "__main__":
    serve(LlamaCpp())
