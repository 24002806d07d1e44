"""Reading comprehension: a passage about the Isles or a scene, and questions that it answers exactly."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, TypeVar

from armillary.world.facts import Person, Piece, World, draw_scene, draw_world, look
from armillary.world.split import Phrasings, Split
from armillary.world.task import Task, turns
from armillary.world.tellings import tell_scene, tell_world

T = TypeVar("T")

ASK_TRADE = Phrasings(
    train=(
        "What is the trade of {name}?",
        "What does {name} do?",
        "What work does {name} do?",
        "What is {name} by trade?",
        "Which trade does {name} have?",
        "What is the trade that {name} has?",
        "What trade is {name}?",
        "What does {name} work as?",
        "Which trade is {name} in?",
        "Tell me the trade of {name}.",
        "What is {name}?",
    ),
    held_out=("What trade does {name} have?", "What is the work of {name}?"),
)
ASK_HOME = Phrasings(
    train=(
        "Where does {name} live?",
        "In which town does {name} live?",
        "Where is the home of {name}?",
        "What is the home town of {name}?",
        "Which town is {name} from?",
        "Where is {name} from?",
        "What town is {name} from?",
        "Where does {name} have a house?",
        "In which town is the house of {name}?",
        "Which town is the home of {name}?",
        "What town does {name} live in?",
        "Tell me where {name} lives.",
    ),
    held_out=("Which town does {name} live in?", "In which town is the home of {name}?"),
)
ASK_AGE = Phrasings(
    train=(
        "How old is {name}?",
        "What is the age of {name}?",
        "What age is {name}?",
        "How many years old is {name}?",
        "How many years has {name}?",
        "How old is {name} in years?",
        "What is the age that {name} has?",
        "Tell me the age of {name}.",
        "Which age is {name}?",
        "How many years has {name} lived?",
    ),
    held_out=("What age does {name} have?", "How many years is the age of {name}?"),
)
ASK_WHO = Phrasings(
    train=(
        "Who is the {trade}?",
        "Who works as a {trade}?",
        "What is the name of the {trade}?",
        "Who is a {trade} by trade?",
        "Which name does the {trade} have?",
        "What is the {trade} called?",
        "Who has the trade of {trade}?",
        "Who here is the {trade}?",
        "Name the {trade}.",
        "Who works here as a {trade}?",
    ),
    held_out=("Who here works as the {trade}?", "What name does the {trade} have?"),
)
ASK_PRICE = Phrasings(
    train=(
        "What does {good} cost?",
        "How much is {good}?",
        "What is the price of {good}?",
        "What does one pay for {good}?",
        "How many coins is {good}?",
        "What is paid for {good}?",
        "How many coins does one pay for {good}?",
        "At what price is {good}?",
        "Tell me the price of {good}.",
        "How much does {good} cost?",
        "What price does {good} have?",
    ),
    held_out=("How many coins does {good} cost?", "How much does one pay for {good}?"),
)
ASK_SELLER = Phrasings(
    train=(
        "Which town sells {good}?",
        "Where does one sell {good}?",
        "In which town is {good}?",
        "In which town is {good} sold?",
        "Where is {good} sold?",
        "What town has {good}?",
        "Which town has {good}?",
        "Tell me which town sells {good}.",
    ),
    held_out=("In which town does one sell {good}?", "What town sells {good}?"),
)
ASK_ISLAND = Phrasings(
    train=(
        "On which island is {town}?",
        "Which island is {town} on?",
        "What is the island of {town}?",
        "Which island has {town}?",
        "Where is {town}?",
        "On which island does {town} lie?",
        "What island is {town} on?",
        "Tell me the island of {town}.",
        "Which is the island of {town}?",
    ),
    held_out=("On what island is {town}?", "On which island is the town of {town}?"),
)
ASK_DISTANCE = Phrasings(
    train=(
        "How far is {end} from {start}?",
        "What is the distance from {start} to {end}?",
        "How many miles is it from {start} to {end}?",
        "How many miles is {end} away from {start}?",
        "What is the distance of {end} from {start}?",
        "How many miles from {start} to {end}?",
        "How far does one sail from {start} to {end}?",
        "Tell me the miles from {start} to {end}.",
        "How far from {start} is {end}?",
    ),
    held_out=("How far is it from {start} to {end}?", "How many miles is {end} from {start}?"),
)
ASK_CELL = Phrasings(
    train=(
        "Where is the {look}?",
        "In which cell is the {look}?",
        "Which cell has the {look}?",
        "In what cell is the {look}?",
        "Where is there a {look}?",
        "Which cell is it that has the {look}?",
        "What is the cell of the {look}?",
        "Tell me where the {look} is.",
        "What cell is the {look} in?",
    ),
    held_out=("Which cell is the {look} in?", "What cell has the {look}?"),
)
ASK_LOOK = Phrasings(
    train=(
        "What is in {cell}?",
        "What does {cell} have?",
        "Which shape is in {cell}?",
        "What shape is in {cell}?",
        "What is there to see in {cell}?",
        "Which shape does {cell} have?",
        "Tell me what is in {cell}.",
        "{cell} has what?",
        "What does one see in {cell}?",
    ),
    held_out=("What is there in {cell}?", "What shape does {cell} have?"),
)
FRAME = Phrasings(
    train=(
        "{text}\n{question}",
        "{text} {question}",
        "Read this: {text}\n{question}",
        "{text}\n\n{question}",
        "{text}\nAnswer this: {question}",
        "Here is a text: {text}\n{question}",
        "{text}\nQuestion: {question}",
        "Text: {text}\n\n{question}",
    ),
    held_out=("Read this: {text} {question}", "Read this: {text}\n\n{question}"),
)


def make(rng: Random, split: Split, questions: int) -> Task:
    """A passage with `questions` questions, one an exchange. One passage in five is a scene."""
    if rng.random() < 0.2:
        return make_scene(rng, split, questions)
    world = draw_size(rng, split)
    return _asked(rng, split, tell_world(rng, split, world), ask_world(rng, split, world, questions))


def make_scene(rng: Random, split: Split, questions: int) -> Task:
    """A scene with `questions` questions: the hardest, since two words name a piece and two marks a cell, and both must
    match."""
    scene = draw_scene(rng, split, rng.randint(1, 6))
    pieces = all_in_turn(rng, scene, questions)
    return _asked(rng, split, tell_scene(rng, split, scene), [ask_piece(rng, split, piece) for piece in pieces])


def _asked(rng: Random, split: Split, passage: str, exchanges: list[tuple[str, str]]) -> Task:
    question, answer = exchanges[0]
    exchanges[0] = FRAME.pick(rng, split).format(text=passage, question=question), answer
    return turns("reading", exchanges)


def draw_size(rng: Random, split: Split) -> World:
    """A world of one to nine facts or so; small ones are as frequent as large ones, since they are learnt first."""
    most = rng.randint(0, 3)
    sizes = [rng.randint(0, min(limit, most)) for limit in (3, 3, 2, 1)]
    world = draw_world(rng, split, *sizes)
    if world.people or world.offers or world.places:
        return world
    return draw_world(rng, split, *rng.choice([(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 1, 0, 1)]))


def ask_person(rng: Random, split: Split, person: Person) -> tuple[str, str]:
    """A question about one person, with its answer."""
    return _ask(rng, split, *rng.choice([_trade, _trade, _home, _age])(rng, person))


def all_in_turn(rng: Random, items: Sequence[T], count: int) -> list[T]:
    """`count` of the items, each once before any comes again: what was asked before can be answered by looking at that
    answer instead of at the passage."""
    found: list[T] = []
    while len(found) < count:
        found += rng.sample(items, min(len(items), count - len(found)))
    return found


def ask_world(rng: Random, split: Split, world: World, count: int) -> list[tuple[str, str]]:
    """Questions with their answers, about everything in the world once before anything is asked again. A person is
    asked about twice as often as anything else."""
    subjects: list[tuple[float, Phrasings, dict[str, Any], str]] = []
    for person in world.people:
        for weight, aspect in ((1.0, _trade), (0.5, _home), (0.5, _age)):
            subjects.append((weight, *aspect(rng, person)))
    for offer in world.offers:
        subjects.append((0.5, ASK_PRICE, {"good": offer.good}, f"{offer.price} coins"))
        subjects.append((0.5, ASK_SELLER, {"good": offer.good}, offer.town))
    for place in world.places:
        subjects.append((1.0, ASK_ISLAND, {"town": place.town}, place.island))
    for route in world.routes:
        subjects.append((1.0, ASK_DISTANCE, {"start": route.start, "end": route.end}, f"{route.miles} miles"))
    # The largest of these keys is each subject's with a chance in proportion to its weight (Efraimidis, Spirakis 2006).
    subjects.sort(key=lambda subject: -(rng.random() ** (1 / subject[0])))
    first = subjects[:count]
    asked = first + all_in_turn(rng, subjects, count - len(first))
    return [_ask(rng, split, *subject[1:]) for subject in asked]


def ask_piece(rng: Random, split: Split, piece: Piece) -> tuple[str, str]:
    """A question about one piece of a scene, with its answer."""
    if rng.random() < 0.5:
        return ASK_CELL.pick(rng, split).format(look=look(piece)), piece.cell
    return ASK_LOOK.pick(rng, split).format(cell=piece.cell), f"a {look(piece)}"


def _ask(rng: Random, split: Split, phrasings: Phrasings, fields: dict[str, Any], answer: str) -> tuple[str, str]:
    return phrasings.pick(rng, split).format(**fields), answer


def _trade(rng: Random, person: Person) -> tuple[Phrasings, dict[str, Any], str]:
    """A trade is asked of a name, or a name of a trade: either answer gives the other away."""
    if rng.random() < 0.5:
        return ASK_TRADE, {"name": person.name}, person.trade
    return ASK_WHO, {"trade": person.trade}, person.name


def _home(rng: Random, person: Person) -> tuple[Phrasings, dict[str, Any], str]:
    return ASK_HOME, {"name": person.name}, person.town


def _age(rng: Random, person: Person) -> tuple[Phrasings, dict[str, Any], str]:
    return ASK_AGE, {"name": person.name}, str(person.age)
