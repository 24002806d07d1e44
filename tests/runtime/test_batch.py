"""Who takes part in a step: what follows from it, and when it is the same as in the step before."""

from __future__ import annotations

from typing import Any

from armillary.core.request import Request, Sequence
from armillary.runtime.batch import Batch
from armillary.runtime.pooling import PoolingParams
from armillary.runtime.sampling import SamplingParams


def member(uid: int, index: int = 0, sampling: Any = None) -> Sequence:
    return Sequence(Request(f"r{uid}", (1, 2, 3), 5, sampling=sampling), index, uid, 0.0)


def test_rows_belong_to_members_and_follow_their_last_token() -> None:
    members = [member(1), member(2, index=3), member(3), member(4)]
    batch = Batch(members, [4, 1, 2, 3], [0, 1, 3, 1])
    assert batch.firsts == [0, 4, 5, 7]
    assert [(row.sequence, row.choice) for row in batch.rows] == [
        (members[1], 3), (members[2], 0), (members[2], 1), (members[2], 2), (members[3], 0),
    ]  # fmt: skip
    assert batch.owners == [1, 2, 2, 2, 3]
    assert batch.places == [4, 6, 6, 6, 9]


def test_it_goes_on_while_the_same_take_part_alike() -> None:
    one, two, twin = member(1), member(2), member(1)
    batch = Batch([one, two], [1, 1], [1, 1])
    assert batch.continues([one, two], [1, 1], [1, 1])
    for members, counts, wanted in (
        ([two, one], [1, 1], [1, 1]), ([one], [1], [1]), ([twin, two], [1, 1], [1, 1]), ([], [], []),
        ([one, two], [1, 2], [1, 1]), ([one, two], [1, 1], [1, 0]), ([one, two, twin], [1, 1, 1], [1, 1, 1]),
    ):  # fmt: skip
        assert not batch.continues(members, counts, wanted)


def test_it_knows_what_anybody_wants() -> None:
    def wants(*asked: Any) -> tuple[bool, bool, bool]:
        members = [member(uid, sampling=one) for uid, one in enumerate(asked)]
        batch = Batch(members, [1] * len(asked), [1] * len(asked))
        return batch.constrained, batch.probed, batch.pooled

    plain = SamplingParams(temperature=0)
    assert wants() == wants(None, plain, SamplingParams(logprobs=3)) == (False, False, False)
    assert wants(plain, SamplingParams(prompt_logprobs=0)) == (False, True, False)
    assert wants(PoolingParams("mean"), None) == (False, False, True)
