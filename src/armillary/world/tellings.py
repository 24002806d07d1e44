"""How facts are told: one sentence a fact, in many phrasings, divided between the sides."""

from __future__ import annotations

from random import Random

from armillary.world.facts import Offer, Person, Piece, Place, Route, Scene, World, look
from armillary.world.split import Phrasings, Split

TRADE = Phrasings(
    train=(
        "{name} is a {trade}.",
        "{name} works as a {trade}.",
        "The {trade} is called {name}.",
        "The {trade} here is {name}.",
        "The name of the {trade} is {name}.",
        "By trade, {name} is a {trade}.",
        "{name} has the trade of {trade}.",
        "The trade of {name} is {trade}.",
        "{name} is the {trade}.",
        "The {trade} is {name}.",
        "A {trade} called {name} works here.",
        "{name} is the {trade} here.",
    ),
    held_out=("{name} is a {trade} by trade.", "The {trade} has the name {name}.", "Here {name} works as a {trade}."),
)
HOME = Phrasings(
    train=(
        "{name} lives in {town}.",
        "The home of {name} is {town}.",
        "{name} has a house in {town}.",
        "The house of {name} is in {town}.",
        "In {town} lives {name}.",
        "{name} is from {town}.",
        "The town of {name} is {town}.",
        "{name} has lived in {town} for long.",
        "{town} is the home of {name}.",
        "{name} is at home in {town}.",
        "In {town} is the house of {name}.",
        "{name} comes from {town}.",
    ),
    held_out=("{name} has a home in {town}.", "The home of {name} is in {town}.", "In {town}, {name} has a house."),
)
AGE = Phrasings(
    train=(
        "{name} is {age} years old.",
        "The age of {name} is {age}.",
        "{name} is {age} years of age.",
        "{name} has lived for {age} years.",
        "{name} has {age} years.",
        "{name} is {age}.",
        "At {age} years, {name} is not young.",
        "The years of {name} are {age}.",
        "{age} years is the age of {name}.",
        "{name} has an age of {age}.",
    ),
    held_out=("The age of {name} is {age} years.", "{name} has the age of {age} years."),
)
PRICE = Phrasings(
    train=(
        "In {town}, {good} costs {price} coins.",
        "{town} sells {good} for {price} coins.",
        "The price of {good} in {town} is {price} coins.",
        "One pays {price} coins for {good} in {town}.",
        "In {town} one sells {good} for {price} coins.",
        "The price of {good} is {price} coins in {town}.",
        "{good} is sold in {town} for {price} coins.",
        "{good} in {town} costs {price} coins.",
        "For {price} coins one has {good} in {town}.",
        "In {town}, {good} is sold for {price} coins.",
        "One pays {price} coins in {town} for {good}.",
    ),
    held_out=("In {town}, the price of {good} is {price} coins.", "In {town} one pays {price} coins for {good}."),
)
PLACE = Phrasings(
    train=(
        "{town} is a town on {island}.",
        "The island of {island} has a town called {town}.",
        "{town} lies on the island of {island}.",
        "On {island} is the town of {town}.",
        "{town} is on the island of {island}.",
        "The island that {town} lies on is {island}.",
        "{island} is the island of {town}.",
        "{town} lies on {island}.",
        "On {island} lies {town}.",
        "There is a town called {town} on {island}.",
    ),
    held_out=("On the island of {island} lies {town}.", "The town of {town} is on {island}."),
)
ROUTE = Phrasings(
    train=(
        "{start} is {miles} miles from {end}.",
        "From {start} to {end} it is {miles} miles.",
        "The distance from {start} to {end} is {miles} miles.",
        "One sails {miles} miles from {start} to {end}.",
        "From {start}, {end} is {miles} miles away.",
        "It is {miles} miles to {end} from {start}.",
        "{start} and {end} are {miles} miles apart: one sails.",
        "The way from {start} to {end} is {miles} miles.",
        "{miles} miles lie between {start} and {end}.",
        "To sail from {start} to {end} is {miles} miles.",
    ),
    held_out=("It is {miles} miles from {start} to {end}.", "From {start} to {end} one sails {miles} miles."),
)
PIECE = Phrasings(
    train=(
        "A {look} is in {cell}.",
        "There is a {look} in {cell}.",
        "In {cell} is a {look}.",
        "{cell} has a {look}.",
        "The cell {cell} has a {look}.",
        "One sees a {look} in {cell}.",
        "{cell} is where the {look} is.",
        "A {look} is there in {cell}.",
        "The cell of the {look} is {cell}.",
        "In {cell}, one sees a {look}.",
    ),
    held_out=("In {cell} there is a {look}.", "The {look} is in {cell}."),
)


def tell_person(rng: Random, split: Split, person: Person) -> list[str]:
    """Three sentences: trade, home, age."""
    told = {"name": person.name, "trade": person.trade, "town": person.town, "age": person.age}
    return [phrasings.pick(rng, split).format(**told) for phrasings in (TRADE, HOME, AGE)]


def tell_offer(rng: Random, split: Split, offer: Offer) -> str:
    return PRICE.pick(rng, split).format(good=offer.good, price=offer.price, town=offer.town)


def tell_place(rng: Random, split: Split, place: Place) -> str:
    return PLACE.pick(rng, split).format(town=place.town, island=place.island)


def tell_route(rng: Random, split: Split, route: Route) -> str:
    return ROUTE.pick(rng, split).format(start=route.start, end=route.end, miles=route.miles)


def tell_piece(rng: Random, split: Split, piece: Piece) -> str:
    return PIECE.pick(rng, split).format(look=look(piece), cell=piece.cell)


def tell_scene(rng: Random, split: Split, scene: Scene) -> str:
    """The scene as a passage, piece by piece."""
    return " ".join(tell_piece(rng, split, piece) for piece in scene)


def tell_world(rng: Random, split: Split, world: World) -> str:
    """Everything that is so in `world`, as a passage. People's facts stay together, the rest is shuffled."""
    paragraphs = [tell_person(rng, split, person) for person in world.people]
    paragraphs += [[tell_offer(rng, split, offer)] for offer in world.offers]
    paragraphs += [[tell_place(rng, split, place)] for place in world.places]
    paragraphs += [[tell_route(rng, split, route)] for route in world.routes]
    rng.shuffle(paragraphs)
    return " ".join(sentence for paragraph in paragraphs for sentence in paragraph)
