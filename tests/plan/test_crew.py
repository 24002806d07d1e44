"""Simulations in processes of their own end with the one that asked for them, and tell it of their errors."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import active_children

import pytest

from armillary.deployment import Deployment
from armillary.errors import ArmillaryError
from armillary.measure.slo import Slo
from armillary.measure.synthesis import WorkloadSpec
from armillary.plan.crew import Crew
from armillary.plan.question import Question
from armillary.plan.trials import Trials
from lingering import linger, refuse


def test_who_is_interrupted_leaves_nobody_behind() -> None:
    question = Question(Deployment(), "l4", WorkloadSpec(), Slo.parse("ttft p95 1s"))
    before, handler = set(active_children()), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Crew(Trials(question), 2) as crew:
        for ready in crew._ready:
            ready.result(120)
        assert len(set(active_children()) - before) == 2
        assert list(crew.each(linger, [0.0, 0.0])) == [0.0, 0.0] and crew._pool is not None
        long = crew.each(linger, [600.0, 600.0])
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        next(long)
    assert set(active_children()) <= before and signal.getsignal(signal.SIGINT) is handler


def test_an_error_of_another_process_says_all_and_ends_no_process() -> None:
    question = Question(Deployment(), "l4", WorkloadSpec(), Slo.parse("ttft p95 1s"))
    with Crew(Trials(question), 2) as crew:
        with pytest.raises(ArmillaryError, match="nothing fits, given 1") as told:
            next(crew.each(refuse, [1, 2]))
        assert told.value.param == "what"
        assert list(crew.each(linger, [0.0, 0.0])) == [0.0, 0.0] and crew._pool is not None
