"""Makes prompts of a wanted length: as token ids, or as text whose length in tokens the server has told us.

The tokenizer of a server that we drive from outside is unknown. `Calibration` holds what two short requests
reveal (tokens the server counts for a given number of words), so that lengths in tokens can be asked for by words.
The lengths that the server reports for each request are what the report states.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from armillary.measure.workload import WorkItem

WORDS = (
    "the of and to in is was for on that with as it be by at from or an are this which you one had not but all "
    "were when we there can more if no out so said what up its about into than them only other time new some could "
    "these two may then do first any my now such like our over man me even most made after also did many before must "
    "through back years where much your way well down should because each just those people how too little state good "
    "very make world still own see men work long get here between both life being under never day same another know "
    "while last might us great old year off come since against go came right used take three"
).split()


@dataclass(frozen=True)
class Calibration:
    """Prompt tokens that a server counts: `base` plus `per_word` times the number of words."""

    base: float = 0.0
    per_word: float = 1.0

    @staticmethod
    def fit(few_words: int, few_tokens: int, many_words: int, many_tokens: int) -> Calibration:
        """The line through two observations; one token a word where they make no sense."""
        slope = (many_tokens - few_tokens) / (many_words - few_words)
        if slope <= 0:
            return Calibration()
        return Calibration(few_tokens - slope * few_words, slope)

    def words(self, tokens: int) -> int:
        """How many words make a prompt of about `tokens` tokens, at least one."""
        return max(1, round((tokens - self.base) / self.per_word))


def _stream(*parts: object) -> random.Random:
    # Not hash(): it differs from process to process.
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def words(count: int, *key: object) -> str:
    """`count` words that depend only on `key`."""
    return " ".join(_stream("words", *key).choices(WORDS, k=count))


def text_prompt(item: WorkItem, calibration: Calibration, seed: int) -> str:
    """The prompt of `item` as text: its own where it has one, else the shared prefix, then words of its own."""
    if item.prompt is not None:
        return item.prompt
    total = calibration.words(item.prompt_tokens)
    if item.prefix is None:
        return words(total, seed, "item", item.id)
    shared = min(total, max(1, round(item.prefix_tokens / calibration.per_word)))
    prefix = words(shared, seed, "prefix", item.prefix)
    return prefix if shared == total else f"{prefix} {words(total - shared, seed, 'item', item.id)}"


def id_prompt(item: WorkItem, vocab_size: int, seed: int) -> list[int]:
    """The prompt of `item` as exactly `prompt_tokens` ids.

    Ids come from the middle four fifths of the vocabulary, since special tokens sit at its ends.
    """
    if item.token_ids is not None:
        return list(item.token_ids)
    low, high = vocab_size // 10, max(vocab_size // 10 + 1, vocab_size - vocab_size // 10)
    ids: list[int] = []
    if item.prefix is not None:
        prefix = _stream("ids", seed, "prefix", item.prefix)
        ids += [prefix.randrange(low, high) for _ in range(item.prefix_tokens)]
    own = _stream("ids", seed, "item", item.id)
    return ids + [own.randrange(low, high) for _ in range(item.prompt_tokens - len(ids))]
