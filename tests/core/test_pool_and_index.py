"""The block pool and the prefix index against an oracle that does everything the slow way."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from armillary.core.blocks import BlockPool
from armillary.core.prefix import Digest, Link, PrefixIndex, block_digest, root_digest

IDENTITIES = ("", "adapter")
Content = tuple[str, tuple[int, ...]]
"""What a block's keys and values depend on: the identity, and every token up to the block's last."""


def colliding(parent: bytes, tokens: tuple[int, ...]) -> bytes:
    return b"same"


def nearly_colliding(parent: bytes, tokens: tuple[int, ...]) -> bytes:
    """Forgets everything before the block."""
    return bytes([sum(tokens) % 4])


class TrustsDigests(PrefixIndex):
    """Deliberately broken: believes that equal digests mean equal prefixes."""

    def lookup(self, tokens: list[int], digests: list[bytes], identity: str, blocks: int) -> list[Link]:
        found = []
        for digest in digests[:blocks]:
            link = self._by_digest.get(digest)
            if link is None:
                break
            found.append(link)
        return found


class ForgetsTheParent(PrefixIndex):
    """Deliberately broken: compares the tokens of the block, and not what came before."""

    def lookup(self, tokens: list[int], digests: list[bytes], identity: str, blocks: int) -> list[Link]:
        found = []
        for i in range(blocks):
            link = self._by_digest.get(digests[i])
            if link is None or link.tokens != tuple(tokens[i * self.block_size : (i + 1) * self.block_size]):
                break
            found.append(link)
        return found


class Holder:
    """A sequence as far as pool and index are concerned."""

    def __init__(self, identity: str, tokens: list[int]) -> None:
        self.identity = identity
        self.tokens = tokens
        self.blocks: list[int] = []
        self.chain: list[Link] = []
        self.digests: list[bytes] = []

    def content(self, block: int, size: int) -> Content:
        return self.identity, tuple(self.tokens[: (block + 1) * size])


class Model:
    """Pool and index beside an oracle: what is in each block, who holds it, and who is given away next."""

    def __init__(
        self,
        num_blocks: int,
        size: int,
        digest: Digest = block_digest,
        index: type[PrefixIndex] = PrefixIndex,
    ) -> None:
        self.size = size
        self.index = index(num_blocks, size, digest)
        self.pool = BlockPool(num_blocks, self.index.forget)
        self.exact = digest is block_digest
        self.holders: list[Holder] = []
        self.contents: dict[int, Content] = {}
        self.findable: dict[Content, tuple[int, int, int]] = {}
        """Content -> (block, serial, serial of the parent that it was indexed behind)."""
        self.free: list[int] = list(range(num_blocks))
        self.serial = 0
        self._serials: dict[int, tuple[Link, int]] = {}
        self.met: Counter[str] = Counter()

    # ---- the oracle's own accounts

    def _give_away(self) -> int:
        block = self.pool.allocate()
        assert all(block not in holder.blocks for holder in self.holders), "a held block was given away"
        expected = self.free.pop(0)
        if self.exact:
            assert block == expected, "blocks are not given away in the order of least recent use"
        else:
            if block != expected:
                self.free.insert(0, expected)
                self.free.remove(block)
        for content in [c for c, (b, _, _) in self.findable.items() if b == block]:
            del self.findable[content]
            self.met["evictions"] += 1
        self.contents.pop(block, None)
        return block

    def _expected_hits(self, holder: Holder, most: int) -> list[int]:
        hits, parent = [], 0
        for i in range(most):
            entry = self.findable.get(holder.content(i, self.size))
            if entry is None or entry[2] != parent:
                break
            hits.append(entry[0])
            parent = entry[1]
        return hits

    def _fill(self, holder: Holder) -> None:
        """Compute every known token of a sequence, and offer the full blocks to the index."""
        size = self.size
        for i, block in enumerate(holder.blocks):
            self.contents[block] = holder.content(i, size)
        full = len(holder.tokens) // size
        for i in range(len(holder.chain), full):
            content = holder.content(i, size)
            parent = self._serial_of(holder.chain[i - 1]) if i else 0
            entry = self.findable.get(content)
            if entry is None or entry[2] != parent:
                self.met["orphans replaced"] += entry is not None
                self.serial += 1
                self.findable[content] = (holder.blocks[i], self.serial, parent)
            before = len(holder.chain)
            identity, tokens = holder.identity, holder.tokens
            self.index.extend_chain(holder.chain, i + 1, holder.blocks, tokens, holder.digests, identity)
            assert len(holder.chain) == before + 1
            link = holder.chain[-1]
            self._serials.setdefault(id(link), (link, self.findable[content][1]))
            if self.exact:
                assert link.block == self.findable[content][0]

    def _serial_of(self, link: Link) -> int:
        return self._serials[id(link)][1]

    # ---- the moves

    def start(self, identity: str, tokens: list[int]) -> Holder | None:
        """Begin a sequence: share what the index finds, allocate and compute the rest."""
        holder = Holder(identity, list(tokens))
        size = self.size
        most = (len(tokens) - 1) // size
        self.index.extend_digests(holder.digests, holder.tokens, identity, most)
        links = self.index.lookup(holder.tokens, holder.digests, identity, most)
        for i, link in enumerate(links):
            assert self.contents.get(link.block) == holder.content(i, size), "a hit outside the common prefix"
        if self.exact:
            assert [link.block for link in links] == self._expected_hits(holder, most), "a block was not found"
        self.met["hits"] += len(links)
        needed = -(-len(tokens) // size) - len(links)
        revived = [link.block for link in links if self.pool.holders(link.block) == 0]
        if needed + len(revived) > self.pool.free_count:
            return None
        self.met["revived"] += len(revived)
        for link in links:
            self.pool.share(link.block)
            if link.block in self.free:
                self.free.remove(link.block)
            holder.blocks.append(link.block)
        holder.chain = list(links)
        self.holders.append(holder)
        holder.blocks.extend(self._give_away() for _ in range(needed))
        self._fill(holder)
        return holder

    def extend(self, holder: Holder, token: int) -> bool:
        """One more token: a new block at a boundary, a copy where the last block is shared."""
        size = self.size
        if len(holder.tokens) % size == 0:
            if self.pool.free_count == 0:
                return False
            holder.blocks.append(self._give_away())
        elif self.pool.holders(holder.blocks[-1]) > 1:
            if self.pool.free_count == 0:
                return False
            shared = holder.blocks[-1]
            holder.blocks[-1] = self._give_away()
            self._release([shared])
            self.met["copies"] += 1
        holder.tokens.append(token)
        self._fill(holder)
        return True

    def fork(self, holder: Holder) -> Holder:
        child = Holder(holder.identity, list(holder.tokens))
        child.blocks, child.chain, child.digests = list(holder.blocks), list(holder.chain), list(holder.digests)
        for block in child.blocks:
            self.pool.share(block)
        self.holders.append(child)
        return child

    def end(self, holder: Holder) -> None:
        self.holders.remove(holder)
        self._release(holder.blocks[::-1])

    def _release(self, blocks: list[int]) -> None:
        held = Counter(block for holder in self.holders for block in holder.blocks)
        worthwhile = {block for block, _, _ in self.findable.values()}
        for block in blocks:
            if not held[block]:
                keep = block in worthwhile if self.exact else self.index.indexed(block)
                self.free.insert(len(self.free) if keep else 0, block)
        self.pool.release(blocks, self.index.indexed)

    def check(self) -> None:
        self.pool.check(block for holder in self.holders for block in holder.blocks)
        assert self.pool.free_count + self.pool.used_count == self.pool.num_blocks
        assert self.pool.free_count == len(self.free)

    def check_contents(self) -> None:
        """Every sequence still finds its own content, and the index says what the oracle says."""
        self.index.check()
        for holder in self.holders:
            for i, block in enumerate(holder.blocks):
                assert self.contents[block] == holder.content(i, self.size), "content was overwritten under a holder"
        if self.exact:
            expected = {block for block, _, _ in self.findable.values()}
            assert {b for b in range(self.pool.num_blocks) if self.index.indexed(b)} == expected
            assert self.pool.free_order() == self.free


def random_operations(model: Model, rnd: random.Random, operations: int) -> None:
    for number in range(operations):
        move = rnd.random()
        if move < 0.3:
            tokens = [rnd.randrange(2) for _ in range(rnd.randint(1, 10 * model.size))]
            model.start(rnd.choice(IDENTITIES), tokens)
        elif model.holders:
            holder = rnd.choice(model.holders)
            if move < 0.62:
                model.extend(holder, rnd.randrange(2))
            elif move < 0.68:
                model.fork(holder)
            else:
                model.end(holder)
        if model.pool.free_count < 3:
            for holder in rnd.sample(model.holders, len(model.holders) // 2):
                model.end(holder)
        model.check()
        if number % 50 == 0:
            model.check_contents()
    while model.holders:
        model.end(model.holders[-1])
    model.check()
    model.check_contents()
    assert model.pool.used_count == 0


@pytest.mark.parametrize("size", [2, 3, 4])
def test_random_operations_agree_with_the_oracle(size: int) -> None:
    model = Model(100, size)
    random_operations(model, random.Random(size), 33_334)
    for path in ("hits", "revived", "evictions", "copies"):
        assert model.met[path] > 300, model.met
    assert model.met["orphans replaced"] > 0


@pytest.mark.parametrize("digest", [colliding, nearly_colliding])
def test_a_collision_never_yields_foreign_content(digest: Digest) -> None:
    model = Model(100, 2, digest)
    random_operations(model, random.Random(0), 10_000)
    assert model.met["hits"] > 0


@pytest.mark.parametrize("broken", [TrustsDigests, ForgetsTheParent])
@pytest.mark.parametrize("digest", [colliding, nearly_colliding])
def test_a_broken_index_is_caught_by_the_same_test(broken: type[PrefixIndex], digest: Digest) -> None:
    with pytest.raises(AssertionError, match="outside the common prefix"):
        random_operations(Model(100, 2, digest, broken), random.Random(0), 10_000)


class PoolLife(RuleBasedStateMachine):
    """The same moves, chosen by hypothesis, on a pool so small that everything happens at once."""

    @initialize(blocks=st.integers(1, 8), size=st.integers(1, 3), collide=st.booleans())
    def begin(self, blocks: int, size: int, collide: bool) -> None:
        self.model = Model(blocks, size, colliding if collide else block_digest)

    @rule(identity=st.sampled_from(IDENTITIES), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def start(self, identity: str, tokens: list[int]) -> None:
        self.model.start(identity, tokens)

    @precondition(lambda self: self.model.holders)
    @rule(data=st.data(), token=st.integers(0, 1))
    def extend(self, data: st.DataObject, token: int) -> None:
        self.model.extend(data.draw(st.sampled_from(self.model.holders)), token)

    @precondition(lambda self: self.model.holders)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.model.fork(data.draw(st.sampled_from(self.model.holders)))

    @precondition(lambda self: self.model.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.model.end(data.draw(st.sampled_from(self.model.holders)))

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "model"):
            self.model.check()
            self.model.check_contents()


TestPoolLife = PoolLife.TestCase
TestPoolLife.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# ------------------------------------------------------------------ the pool by itself


def test_blocks_are_given_away_least_recently_used_first() -> None:
    pool = BlockPool(4)
    blocks = [pool.allocate() for _ in range(4)]
    assert blocks == [0, 1, 2, 3]
    for block in (2, 0, 3):
        pool.release([block], lambda _: True)
    pool.share(0)  # used again: it is the youngest when it is given back
    pool.release([0], lambda _: True)
    assert [pool.allocate() for _ in range(3)] == [2, 3, 0]


def test_blocks_with_nothing_worth_keeping_go_first() -> None:
    pool = BlockPool(3)
    for _ in range(3):
        pool.allocate()
    pool.release([0], lambda _: True)
    pool.release([1], lambda _: False)
    pool.release([2], lambda _: True)
    assert [pool.allocate() for _ in range(3)] == [1, 0, 2]


def test_a_free_block_with_nothing_in_it_may_be_held_again() -> None:
    pool = BlockPool(3)
    pool.release([pool.allocate()], lambda _: False)
    pool.share(0)
    assert pool.take(0) == [] and pool.free_order() == [1, 2]
    assert [pool.allocate() for _ in range(2)] == [1, 2]
    pool.check([0, 1, 2])


def test_an_empty_pool_gives_nothing() -> None:
    pool = BlockPool(1)
    pool.allocate()
    with pytest.raises(IndexError):
        pool.allocate()


def test_a_block_cannot_be_released_more_often_than_it_is_held() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    pool.release([block], lambda _: False)
    with pytest.raises(ValueError, match="more often"):
        pool.release([block], lambda _: False)
    pool.check([])


def test_a_wrong_account_is_noticed() -> None:
    pool = BlockPool(2)
    block = pool.allocate()
    with pytest.raises(RuntimeError):
        pool.check([])
    with pytest.raises(RuntimeError):
        pool.check([block, block])
    pool.check([block])


def test_a_pool_needs_a_block() -> None:
    with pytest.raises(ValueError, match="at least 1, given 0"):
        BlockPool(0)


# ------------------------------------------------------------------ digests


def test_digests_are_equal_in_every_process_and_ever_after() -> None:
    program = (
        "from armillary.core.prefix import *;"
        "print(block_digest(root_digest('adapter'), (1, 2, 3)).hex(), block_digest(root_digest(''), (0,)).hex())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "12345")
    }
    assert outputs == {"125c01b03d62eb2790ee3563b45c3298 cf4e54190a82496ea26faee40ef30df7"}


def test_digests_depend_on_identity_order_length_and_parent() -> None:
    root = root_digest("")
    digests = {
        block_digest(root, (1, 2)),
        block_digest(root, (2, 1)),
        block_digest(root, (1, 2, 0)),
        block_digest(root, (513,)),
        block_digest(root_digest("adapter"), (1, 2)),
        block_digest(block_digest(root, (1, 2)), (1, 2)),
    }
    assert len(digests) == 6
    assert root_digest("\ud800") != root_digest("")  # a lone surrogate from a client's JSON is an identity too


def test_identities_share_nothing() -> None:
    model = Model(16, 2)
    model.start("", [0, 1, 0, 1, 0])
    model.start("adapter", [0, 1, 0, 1, 0])
    assert model.met["hits"] == 0
    model.start("", [0, 1, 0, 1, 1])
    assert model.met["hits"] == 2


def test_a_very_long_chain_is_let_go_without_recursion() -> None:
    index = PrefixIndex(200_000, 1)
    chain: list[Link] = []
    index.extend_chain(chain, 200_000, list(range(200_000)), [0] * 200_000, [], "")
    index.check()
    del chain
    index.clear()
    assert len(index) == 0


def test_a_cleared_index_finds_nothing() -> None:
    model = Model(16, 2)
    holder = model.start("", [0, 1, 0, 1, 0])
    assert holder is not None
    model.index.clear()
    assert model.index.lookup(holder.tokens, holder.digests, "", 2) == []
    assert len(model.index) == 0
