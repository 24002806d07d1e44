"""Tasks are the same everywhere, and their checks know right from nearly right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from random import Random

import pytest

from armillary.errors import ArmillaryError
from armillary.world import evaluate as evaluation
from armillary.world.split import Split
from armillary.world.task import Task
from armillary.world.tasks import TASKS, UNSCORED, arithmetic, tools
from armillary.world.tasks.ordering import LONGEST

ALL = {**TASKS, **UNSCORED}


def make(name: str, number: int, split: Split = Split.HELD_OUT, questions: int = 1) -> Task:
    return ALL[name](Random(f"check/{name}/{number}"), split, questions)


def digest() -> str:
    rows = [[make(name, 7, split, 3).messages, make(name, 7, split, 3).answer] for name in ALL for split in Split]
    return json.dumps(rows)


def test_same_seed_same_world_in_another_process() -> None:
    script = (
        "import json; from random import Random; from armillary.world.tasks import TASKS, UNSCORED;"
        "from armillary.world.split import Split;"
        "make = lambda n, s: {**TASKS, **UNSCORED}[n](Random(f'check/{n}/7'), s, 3);"
        "print(json.dumps([[make(n, s).messages, make(n, s).answer] for n in {**TASKS, **UNSCORED} for s in Split]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)},
    )
    assert result.stdout.strip() == digest()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("split", list(Split))
def test_truth_is_accepted_and_near_misses_are_not(name: str, split: Split) -> None:
    for number in range(60):
        task = make(name, number, split, 1 + number % 3)
        assert task.messages[-1]["role"] == "user"
        assert task.check(task.answer)
        assert task.check(f" {task.answer}\n")
        wrongs = [task.answer[:-1], task.answer + " x", "", task.answer + ", " + task.answer[:-1]]
        if name not in ("addition", "subtraction"):  # of a sum, the result counts, whatever stands before it
            wrongs += [task.answer[1:], "I " + task.answer]
        for wrong in wrongs:
            assert not task.check(wrong), (task, wrong)


def test_swapped_digits_and_items_are_wrong() -> None:
    task = make("sorting", 3)
    items = task.answer.split(", ")
    assert not task.check(", ".join([*items[1:], items[0]]))
    assert not task.check(task.answer.replace(", ", ","))


def test_working_is_right_line_by_line() -> None:
    assert arithmetic.add_working(34, 27) == "4 + 7 = 11, 3 + 2 + 1 = 6, 61"
    assert arithmetic.subtract_working(63, 27) == "13 - 7 = 6, 5 - 2 = 3, 36"
    for a in range(100):
        for b in range(100):
            lines = [arithmetic.add_working(a, b)] + [arithmetic.subtract_working(a, b)] * (a >= b)
            for line, result in zip(lines, (a + b, a - b), strict=False):
                *steps, last = line.split(", ")
                assert int(last) == result
                for step in steps:
                    terms, total = step.split(" = ")
                    signs = [1 if sign == "+" else -1 for sign in re.findall("[+-]", terms)]
                    first, *others = map(int, re.findall(r"\d+", terms))
                    assert first + sum(s * n for s, n in zip(signs, others, strict=True)) == int(total)


def test_a_sum_may_be_given_with_or_without_working() -> None:
    for name in ("addition", "subtraction"):
        for number in range(40):
            task = make(name, number)
            alone = arithmetic.result_of(task.answer)
            assert alone != task.answer
            assert task.check(alone)
            assert task.check(task.answer)
            result = int(alone.split()[0])
            assert not task.check(alone.replace(str(result), str(result + 10)))
            assert not task.check(alone.replace(str(result), str(result + 1)))


def test_lists_have_at_most_eight_items() -> None:
    for name in ("sorting", "reversing"):
        assert {len(make(name, number).answer.split(", ")) for number in range(300)} == set(range(2, LONGEST + 1))


def test_json_may_be_spaced_and_ordered_freely_but_not_retyped() -> None:
    task = next(t for t in (make("extraction", n) for n in range(50)) if '"age"' in t.answer and '"name"' in t.answer)
    truth = json.loads(task.answer)
    assert task.check(json.dumps(dict(reversed(truth.items())), indent=2))
    assert not task.check(json.dumps({**truth, "age": str(truth["age"])}))
    assert not task.check(json.dumps({**truth, "more": 1}))
    assert not task.check("Here: " + task.answer)


def test_calls_must_be_well_formed_and_alone() -> None:
    task = make("tools", 5)
    call = tools.parse_call(task.answer)
    assert call is not None
    assert task.check(f"<tool_call>{json.dumps(call)}</tool_call>")
    assert not task.check(json.dumps(call))
    assert not task.check(task.answer + task.answer)
    assert not task.check(task.answer.replace("</tool_call>", ""))
    assert not task.check(tools.render_call("weather", call["arguments"]))
    assert call["name"] in {tool["function"]["name"] for tool in task.tools}


def test_descriptions_may_be_worded_otherwise_but_must_be_complete() -> None:
    for number in range(40):
        task = make("description", number)
        sentences = task.answer.removesuffix(".").split(". ")
        if len(sentences) > 1:
            assert not task.check(". ".join(sentences[:-1]) + ".")
    rewordings = {make("description", number).answer for number in range(40)}
    assert len(rewordings) > 20


def test_dialogues_need_what_was_said_before() -> None:
    for number in range(40):
        task = make("dialogue", number)
        assert sum(message["role"] == "assistant" for message in task.messages) >= 1


def test_evaluation_counts_and_keeps_examples() -> None:
    asked: list[evaluation.Question] = []

    def truth(questions: list[evaluation.Question]) -> list[str]:
        asked.extend(questions)
        answers = [task.answer for task in evaluation.held_out_tasks(["sorting"], 20, 9)["sorting"]]
        return [*answers[:-5], *(["no"] * 5)]

    (level,) = evaluation.evaluate(truth, ["sorting"], count=20, seed=9)
    assert (level.task, level.right, level.count, level.share) == ("sorting", 15, 20, 0.75)
    assert len(level.wrong) == 3
    assert level.wrong[0][1] == "no"
    assert len(asked) == 20
    with pytest.raises(ArmillaryError, match="task must be one of"):
        evaluation.evaluate(truth, ["poetry"])
    with pytest.raises(ArmillaryError, match="count must be at least 1"):
        evaluation.evaluate(truth, ["sorting"], count=0)
