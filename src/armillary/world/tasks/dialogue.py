"""Dialogues whose last question can only be answered by looking back at what was said."""

from __future__ import annotations

from random import Random

from armillary.world import names
from armillary.world.facts import Person, draw_items, draw_sum, draw_world, sum_key
from armillary.world.split import Phrasings, Split, draw
from armillary.world.task import Task, turns
from armillary.world.tasks import arithmetic, ordering, reading
from armillary.world.tellings import tell_world

AND_TRADE = Phrasings(
    train=(
        "And what is their trade?",
        "What do they do?",
        "And their trade?",
        "What work do they do?",
        "And what work do they do?",
        "What is the trade they have?",
        "Their trade?",
        "And by trade?",
        "What are they by trade?",
        "And which trade is theirs?",
    ),
    held_out=("And what do they do?", "What is their trade?"),
)
AND_HOME = Phrasings(
    train=(
        "And where do they live?",
        "And their home?",
        "In which town do they live?",
        "Where is their home?",
        "And where is their home?",
        "Their home town?",
        "And in which town is their home?",
        "Which town is their home?",
        "And where is their house?",
        "What town do they live in?",
    ),
    held_out=("Where do they live?", "And in which town do they live?"),
)
AND_AGE = Phrasings(
    train=(
        "And how old are they?",
        "What is their age?",
        "And their age?",
        "What age are they?",
        "And what age are they?",
        "Their age?",
        "How many years old are they?",
        "And in years?",
        "And what age do they have?",
        "And how many years?",
    ),
    held_out=("How old are they?", "And what is their age?"),
)
AND_PRICE = Phrasings(
    train=(
        "And {good}?",
        "And how much is {good}?",
        "And for {good}?",
        "What about {good}?",
        "How much is {good}?",
        "And the price of {good}?",
        "And what does {good} cost?",
        "What is it for {good}?",
        "{good}?",
        "And {good}, how much is it?",
    ),
    held_out=("And what about {good}?", "And what is it for {good}?"),
)
ADD_TO_THAT = Phrasings(
    train=(
        "Add {b} to that.",
        "And {b} more?",
        "Plus {b}?",
        "What is that plus {b}?",
        "And now add {b}.",
        "And that plus {b}?",
        "{b} more?",
        "And with {b} more?",
        "Now plus {b}.",
        "Add {b} more.",
        "What is it with {b} more?",
    ),
    held_out=("Now add {b} to that.", "And what is that plus {b}?"),
)
REVERSE_THAT = Phrasings(
    train=(
        "Now reverse it.",
        "Reverse that.",
        "And in reverse?",
        "Now write it backwards.",
        "And that backwards?",
        "Reverse it.",
        "Write that in reverse.",
        "Now in reverse.",
        "Turn it round.",
        "Give that backwards.",
    ),
    held_out=("Now reverse that.", "And backwards?"),
)
FIRST_OF_THAT = Phrasings(
    train=(
        "Which is first?",
        "What is the first one?",
        "And the first?",
        "What comes first?",
        "The first one?",
        "And which one comes first?",
        "Give the first one.",
        "Which one is the first?",
    ),
    held_out=("Which one is first?", "And what is the first one?"),
)
LAST_OF_THAT = Phrasings(
    train=(
        "Which is last?",
        "What is the last one?",
        "And the last?",
        "What comes last?",
        "The last one?",
        "And which one comes last?",
        "Give the last one.",
        "Which one is the last?",
    ),
    held_out=("Which one is last?", "And what is the last one?"),
)
INTRODUCE = Phrasings(
    train=(
        "My name is {name} and I live in {town}.",
        "I am {name} from {town}.",
        "Hello, my name is {name}. My home is {town}.",
        "I live in {town} and my name is {name}.",
        "My name is {name}. I live in {town}.",
        "Hello, {name} here, from {town}.",
        "I am {name}, and {town} is my home.",
        "{name} is my name and {town} is my home.",
        "I live in {town}. I am {name}.",
    ),
    held_out=("Hello, I am {name} and I live in {town}.", "My home is {town} and my name is {name}."),
)
MY_NAME = Phrasings(
    train=(
        "What is my name?",
        "Who am I?",
        "And my name?",
        "What was my name?",
        "My name is what?",
        "Which name is mine?",
        "And what am I called?",
        "What am I called?",
    ),
    held_out=("And what is my name?", "And who am I?"),
)
MY_HOME = Phrasings(
    train=(
        "Where do I live?",
        "Where is my home?",
        "And my home?",
        "In which town do I live?",
        "Which town is my home?",
        "And where is my house?",
        "What town do I live in?",
        "Which town do I live in?",
        "And which town is mine?",
    ),
    held_out=("And where do I live?", "In which town is my home?"),
)


def make(rng: Random, split: Split, questions: int) -> Task:
    """A dialogue of one of five kinds. `questions` is a hint of its length; it has at least two exchanges."""
    kinds = [_same_person, _same_person, _another_good, _running_sum, _list, _introduction]
    return turns("dialogue", rng.choice(kinds)(rng, split, max(2, questions)))


def _same_person(rng: Random, split: Split, count: int) -> list[tuple[str, str]]:
    world = draw_world(rng, split, rng.randint(2, 3), 0, 0, 0)
    exchanges: list[tuple[str, str]] = []
    while len(exchanges) < count:
        person = rng.choice(world.people)
        exchanges.append(reading.ask_person(rng, split, person))
        for _ in range(rng.randint(1, 2)):
            exchanges.append(_ask_again(rng, split, person))
    return _framed(rng, split, tell_world(rng, split, world), exchanges)


def _ask_again(rng: Random, split: Split, person: Person) -> tuple[str, str]:
    phrasings, answer = rng.choice([(AND_TRADE, person.trade), (AND_HOME, person.town), (AND_AGE, str(person.age))])
    return phrasings.pick(rng, split), answer


def _another_good(rng: Random, split: Split, count: int) -> list[tuple[str, str]]:
    world = draw_world(rng, split, 0, rng.randint(2, 4), 0, 0)
    first, *rest = rng.sample(world.offers, min(count, len(world.offers)))
    exchanges = [(reading.ASK_PRICE.pick(rng, split).format(good=first.good), f"{first.price} coins")]
    exchanges += [(AND_PRICE.pick(rng, split).format(good=offer.good), f"{offer.price} coins") for offer in rest]
    return _framed(rng, split, tell_world(rng, split, world), exchanges)


def _framed(rng: Random, split: Split, passage: str, exchanges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    (question, answer), *rest = exchanges
    return [(reading.FRAME.pick(rng, split).format(text=passage, question=question), answer), *rest]


def _running_sum(rng: Random, split: Split, count: int) -> list[tuple[str, str]]:
    a, b = draw_sum(rng, split, 10, 40)
    exchanges = [(arithmetic.ADD.pick(rng, split).format(a=a, b=b), arithmetic.add_working(a, b))]
    total = a + b
    while len(exchanges) < count and total <= 99:
        # The first operand is given, so the pair is drawn by its second.
        total, step = draw_sum_onto(rng, split, total)
        exchanges.append((ADD_TO_THAT.pick(rng, split).format(b=step), arithmetic.add_working(total, step)))
        total += step
    return exchanges


def draw_sum_onto(rng: Random, split: Split, total: int) -> tuple[int, int]:
    """`total` and a number to add to it, the pair belonging to `split`."""
    return draw(split, lambda: (total, rng.randint(10, 99)), sum_key)


def _list(rng: Random, split: Split, count: int) -> list[tuple[str, str]]:
    sort = rng.random() < 0.5
    pool = rng.choice([ordering.NUMBERS, names.WORDS])
    items = draw_items(rng, split, pool, rng.randint(3, 6))
    if sort:
        numbers = pool is ordering.NUMBERS
        phrasings = ordering.SORT_NUMBERS if numbers else ordering.SORT_WORDS
        answer = sorted(items, key=int) if numbers else sorted(items)
    else:
        phrasings, answer = ordering.REVERSE, items[::-1]
    exchanges = [(phrasings.pick(rng, split).format(items=ordering.join(items)), ordering.join(answer))]
    while len(exchanges) < count:
        kind = rng.randrange(3)
        if kind == 0:
            answer = answer[::-1]
            exchanges.append((REVERSE_THAT.pick(rng, split), ordering.join(answer)))
        elif kind == 1:
            exchanges.append((FIRST_OF_THAT.pick(rng, split), answer[0]))
        else:
            exchanges.append((LAST_OF_THAT.pick(rng, split), answer[-1]))
    return exchanges


def _introduction(rng: Random, split: Split, count: int) -> list[tuple[str, str]]:
    name, town = rng.choice(names.people(split)), rng.choice(names.towns(split))
    exchanges = [(INTRODUCE.pick(rng, split).format(name=name, town=town), f"Hello, {name}.")]
    if rng.random() < 0.5:
        exchanges.append(ordering.reverse_exchange(rng, split))
    for _ in range(max(1, count - len(exchanges))):
        phrasings, answer = rng.choice([(MY_NAME, name), (MY_HOME, town)])
        exchanges.append((phrasings.pick(rng, split), answer))
    return exchanges
