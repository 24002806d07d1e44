"""The prefix index: from tokens to blocks that have their keys and values."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate, islice
from typing import Any

Name = bytes | int
"""What an index knows a block by: its digest."""
Digest = Callable[[Any, tuple[int, ...]], Name]
"""Of a block, given its parent's, or `root_digest`."""


def block_digest(parent: bytes, tokens: tuple[int, ...]) -> bytes:
    """Digest of a block given its parent's: equal in every process and on every machine."""
    return blake2b(parent + struct.pack(f"<{len(tokens)}q", *tokens), digest_size=16).digest()


def root_digest(identity: str) -> bytes:
    """Digest that stands before the first block: adapter and media are part of every block's hash."""
    return blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Link:
    """One indexed block: its tokens, and the link (or the identity) that they follow.

    `parent` is the preceding link, compared by object, or the request's identity for a first block. With
    `tokens` it makes a hit exact: two different prefixes whose digests collide never match.
    """

    __slots__ = ("block", "digest", "parent", "tokens")

    def __init__(self, block: int, digest: Name, tokens: tuple[int, ...], parent: Link | str) -> None:
        self.block = block
        self.digest = digest
        self.tokens = tokens
        self.parent = parent


class PrefixIndex:
    """Finds blocks by the tokens that led to them: computed ones, and those that the step under way computes.

    Only full blocks are indexed. The index holds no block: a free block stays findable until the pool
    gives it away and calls `forget`.

    Args:
        num_blocks, block_size: as the pool's.
        digest: replaceable so that tests can make every digest collide.
    """

    def __init__(self, num_blocks: int, block_size: int, digest: Digest = block_digest) -> None:
        self.block_size = block_size
        self._digest = digest
        self._by_digest: dict[Name, Link] = {}
        self._by_block: list[Link | None] = [None] * num_blocks
        self.evictions = 0
        """Indexed blocks whose content was given up for another use."""

    def __len__(self) -> int:
        return len(self._by_digest)

    def extend_digests(self, digests: list[Name], tokens: list[int], identity: str, blocks: int) -> None:
        """Append the digests of the leading full blocks of `tokens` until there are `blocks` of them."""
        if len(digests) < blocks:
            filled = self._cut(tokens, len(digests), blocks)
            parent = digests[-1] if digests else root_digest(identity)
            digests += islice(accumulate(filled, self._digest, initial=parent), 1, None)

    def _cut(self, tokens: list[int], first: int, end: int) -> Iterator[tuple[int, ...]]:
        """The tokens of some blocks, each of which is full."""
        size = self.block_size
        return zip(*[iter(tokens[first * size : end * size])] * size, strict=True)

    def find(self, tokens: list[int], digests: list[Name], identity: str) -> list[Link]:
        """The longest run of indexed blocks that can stand in for computing `tokens`.

        The last token is not among them: it is always computed, since its logits are what comes next. `digests` is
        extended to the blocks that are looked for.
        """
        blocks = (len(tokens) - 1) // self.block_size
        self.extend_digests(digests, tokens, identity, blocks)
        return self.lookup(tokens, digests, identity, blocks)

    def lookup(
        self, tokens: list[int], digests: list[Name], identity: str, blocks: int, chain: Sequence[Link] = ()
    ) -> list[Link]:
        """The longest run of indexed blocks that starts `tokens`, at most up to block `blocks`.

        Args:
            digests: those of the leading blocks, at least `blocks` of them.
            chain: links on the leading blocks, as far as they are known; the run begins after them.
        """
        parent: Link | str = chain[-1] if chain else identity
        found: list[Link] = []
        for digest in digests[len(chain) : blocks]:
            link = self._by_digest.get(digest)
            if link is None or (link.parent is not parent and link.parent != parent):
                break
            found.append(link)
            parent = link
        filled = list(self._cut(tokens, len(chain), len(chain) + len(found)))
        if [link.tokens for link in found] != filled:  # digests have collided
            del found[next(i for i, link in enumerate(found) if link.tokens != filled[i]) :]
        return found

    def extend_chain(
        self,
        chain: list[Link],
        count: int,
        blocks: list[int],
        tokens: list[int],
        digests: list[Name],
        identity: str,
    ) -> None:
        """Index the blocks that a sequence has filled, or fills in the step that has been chosen.

        Args:
            chain: links on the sequence's leading blocks; extended to `count`.
            count: blocks at the head of `blocks` that are computed to their last position.
            digests: of the leading full blocks of `tokens`, as far as known; extended to `count` if shorter.
        """
        first = len(chain)
        self.extend_digests(digests, tokens, identity, count)
        parent: Link | str = chain[-1] if chain else identity
        filled = self._cut(tokens, first, count)
        known, by_block = self._by_digest, self._by_block
        for block, digest, content in zip(blocks[first:count], digests[first:count], filled, strict=True):
            if digest in known:
                parent = self.register(block, digest, content, parent)
            else:  # nearly always
                parent = known[digest] = by_block[block] = Link(block, digest, content, parent)
            chain.append(parent)

    def add_link(
        self, chain: list[Link], block: int, filled: tuple[int, ...], digests: list[Name], identity: str
    ) -> None:
        """Index one more block that a sequence has filled with these tokens, as of `extend_chain`."""
        number = len(chain)
        if number == len(digests):  # there are never fewer digests than links
            digests.append(self._digest(digests[-1] if digests else root_digest(identity), filled))
        digest, parent = digests[number], chain[-1] if chain else identity
        if digest in self._by_digest:
            chain.append(self.register(block, digest, filled, parent))
        else:  # nearly always
            link = self._by_digest[digest] = self._by_block[block] = Link(block, digest, filled, parent)
            chain.append(link)

    def first_known(self, digests: list[Name], first: int, end: int) -> int:
        """The place of the first of some digests under which a block is indexed; `end` where there is none."""
        known = self._by_digest
        while first < end and digests[first] not in known:
            first += 1
        return first

    def register(self, block: int, digest: Name, tokens: tuple[int, ...], parent: Link | str) -> Link:
        """Index a block that has just been computed; returns the link that its successor follows.

        Where the same content is indexed already, that link is returned and `block` stays unindexed.
        """
        link = self._by_digest.get(digest)
        if link is not None:
            if link.parent == parent and link.tokens == tokens:
                return link
            # A collision, or a block whose parent was given away and computed anew: the newcomer can be
            # reached, the old one may not be, so the newcomer takes the place.
            self._by_block[link.block] = None
        link = Link(block, digest, tokens, parent)
        self._by_digest[digest] = link
        self._by_block[block] = link
        return link

    def forget(self, blocks: Iterable[int]) -> None:
        """The blocks' content is about to be overwritten: no lookup may find it again."""
        by_block = self._by_block
        for block in blocks:
            link = by_block[block]
            if link is not None:
                by_block[block] = None
                del self._by_digest[link.digest]
                self.evictions += 1

    def withdraw(self, link: Link) -> None:
        """What the link says of its block is not so: no lookup may find it again."""
        if self._by_block[link.block] is link:
            self._by_block[link.block] = None
            del self._by_digest[link.digest]

    def indexed(self, block: int) -> bool:
        """Whether a lookup could still find the block."""
        return self._by_block[block] is not None

    def links(self) -> list[Link | None]:
        """A copy of what is indexed in every block."""
        return self._by_block.copy()

    def __contains__(self, digest: Name) -> bool:
        """Whether some block is indexed under the digest; only `lookup` compares the tokens."""
        return digest in self._by_digest

    def check(self) -> None:
        """Verify that digests and blocks point at each other; raises `RuntimeError` on a difference."""
        blocks = {block: link for block, link in enumerate(self._by_block) if link is not None}
        if blocks != {link.block: link for link in self._by_digest.values()} or any(
            self._by_digest.get(link.digest) is not link for link in blocks.values()
        ):
            raise RuntimeError("the prefix index lists a block under a digest that leads to another")

    def clear(self) -> None:
        """Forget everything (the KV tensors were dropped, or the weights changed)."""
        self._by_digest.clear()
        self._by_block = [None] * len(self._by_block)
