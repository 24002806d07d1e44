"""armillary eval"""

from __future__ import annotations

import asyncio
from random import Random
from typing import Annotated

import typer

from armillary.cli import partners
from armillary.cli.flags import Given, with_flags
from armillary.cli.output import console, print_json, print_table
from armillary.deployment import EngineSettings, checked

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@app.callback()
def _eval() -> None:
    """Measure what a model knows."""


@app.command()
@with_flags(omit=("seed",), engine=EngineSettings)
def isles(
    model: partners.Model = None,
    url: partners.Url = None,
    api_key: partners.ApiKey = None,
    task: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Only this kind of task; repeatable.")] = None,
    count: Annotated[int, typer.Option(min=1, metavar="INT", help="Tasks of each kind.")] = 200,
    seed: Annotated[int, typer.Option(min=0, metavar="INT", help="Of the tasks; 1 steered the training.")] = 2,
    wrong: Annotated[int, typer.Option(min=0, metavar="INT", help="Wrong answers of each kind to print.")] = 0,
    passages: Annotated[
        int, typer.Option(min=0, metavar="INT", help="Held-out passages to read for the perplexity; 0 for none.")
    ] = 100,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    given: Given,
) -> None:
    """Ask held-out tasks of the Isles and check every answer; and read held-out text.

    Through an engine in this process, or through a server with --url. Names, numbers and phrasings of the tasks
    never occur in training. How little held-out passages surprise the model is measured without a server only; with
    weights or keys in 4 or 8 bits beside what they are in the checkpoint, which shows what quantising costs.
    """
    partner = partners.partner(model, url, api_key, given)

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from armillary.runtime.partner import LocalPartner, Wishes, answers
    from armillary.runtime.perplexity import perplexity, unquantised
    from armillary.train.card import TARGETS
    from armillary.train.stream import telling
    from armillary.world.evaluate import LONGEST_ANSWER, Question, evaluate
    from armillary.world.split import Split
    from armillary.world.tasks import TASKS

    names = tuple(task or TASKS)
    columns = (TextColumn("[bold]isles[/bold]"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as bar:
        asked = bar.add_task("ask", total=len(names) * count)

        def generate(questions: list[Question]) -> list[str]:
            talks = [(question.messages, question.tools) for question in questions]
            wishes = Wishes(temperature=0.0, max_tokens=LONGEST_ANSWER)
            return asyncio.run(answers(partner, talks, wishes, done=lambda: bar.advance(asked)))

        try:
            levels = evaluate(generate, names, count, seed, examples=wrong)
            surprise = plain = None
            if isinstance(partner, LocalPartner) and passages:
                draws = (Random(f"{seed}/passage/{number}") for number in range(passages))
                texts = [telling(draw, Split.HELD_OUT) for draw in draws]
                surprise = perplexity(partner.llm, texts)
                plain = unquantised(partner.name, checked(EngineSettings, given["engine"]), texts)
        finally:
            partner.close()
    if json:
        print_json({"levels": [{"task": level.task, "right": level.right, "count": level.count, "share": level.share,
                                "aim": TARGETS.get(level.task), "wrong": level.wrong} for level in levels],
                    "perplexity": surprise, "unquantised": plain})  # fmt: skip
        return
    rows = []
    for level in levels:
        aim = TARGETS.get(level.task)
        reached = "" if aim is None else "yes" if level.share >= aim else "no"
        rows.append((level.task, f"{level.share:.1%}", "–" if aim is None else f"{aim:.0%}", reached, level.count))
    print_table(f"{partner.name} on held-out tasks of the Isles", ["task", "right", "aim", "reached", "items"], rows)
    if surprise is not None:
        print(f"perplexity on {surprise.texts} held-out passages ({surprise.tokens} tokens): {surprise.value:.4f}")
    if surprise is not None and plain is not None:
        change = surprise.value / plain.value - 1
        print(f"as in the checkpoint {plain.value:.4f}: quantising changes it by {change:+.2%}")
    for level in levels:
        for question, answer, right in level.wrong:
            print(f"\n{level.task}: {question}\n  answered  {answer}\n  right     {right}")
