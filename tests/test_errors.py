"""Errors pass from process to process whole."""

from __future__ import annotations

import pickle

import pytest

from armillary.errors import ArmillaryError, Code, Refused


@pytest.mark.parametrize(
    "error",
    [
        ArmillaryError(Code.CANNOT_FIT, "at most 8 blocks, given 9"),
        ArmillaryError(Code.INVALID_REQUEST, "n must be at least 1, given 0", param="n"),
        Refused(Code.RATE_LIMIT, "requests", "at most 5 requests a minute", "user", 1.5),
    ],
)
def test_an_error_is_pickled_with_all_it_says(error: ArmillaryError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
