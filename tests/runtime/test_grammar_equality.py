"""Constrained requests alone, beside others, in chunks, preempted, with forced tokens and without: the same tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from armillary.core.request import FinishReason, Request
from armillary.runtime.sampling import SamplingParams
from armillary.twin.replay import replay
from grammar_cells import Model, Told, Way, constrained, make_model, request, run
from small_tokenizers import SENTENCEPIECE_CONFIG, sentencepiece

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colour": {"enum": ["red", "green"]},
    },
    "required": ["name", "age", "colour"],
    "additionalProperties": False,
}
LIMIT = 110
WAYS = [
    Way(forced=False),
    Way(batch=False),
    Way(batch=False, forced=False),
    Way(chunk=3),
    Way(chunk=1, forced=False),
    Way(many=False),
    Way(many=False, forced=False, chunk=5),
    Way(preempt_every=2),
    Way(preempt_every=3, cache=False, chunk=4),
    Way(cache=False, forced=False, preempt_every=5),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("byte"))


def requests(model: Model) -> list[Request]:
    """Greedy, drawn, several choices, penalties, biases, stops, logprobs; and neighbours without a grammar."""

    def ask(name: str, kind: str, source: object = None, limit: int = LIMIT, **params: object) -> Request:
        return request(model, name, constrained(model, kind, source, **params), limit=limit)

    quote = next(t for t in range(model.tokenizer.vocab_size) if model.tokenizer.token_bytes(t) == b'"')
    return [
        ask("greedy", "json_schema", PERSON, temperature=0),
        ask("drawn", "json_schema", PERSON, temperature=1.0, n=3),
        ask("narrow", "json_schema", PERSON, temperature=0.8, top_k=5, top_p=0.9, min_p=0.01),
        ask("punished", "json_schema", PERSON, temperature=0, repetition_penalty=1.4, frequency_penalty=1.0),
        ask("biased", "json_object", temperature=1.0, logit_bias={quote: 20.0, 5: -100.0}),
        ask("watched", "json_schema", PERSON, temperature=0, logprobs=3),
        ask("short", "json_schema", PERSON, limit=5, temperature=1.0),
        ask("word", "choice", ["yes", "no way", "no", "naïve 🙂"], temperature=1.0, n=2),
        ask("pattern", "regex", "[a-c]{3,9}(stop|halt)", temperature=1.0, stop_token_ids=(quote,)),
        ask("rules", "lark", 'start: "(" start ")" | /[0-9]{2}/', temperature=1.0),
        request(model, "free", SamplingParams(temperature=0), limit=40),
        request(model, "wild", SamplingParams(temperature=1.0, n=2), limit=20),
    ]


def turns(told: Told) -> int:
    """How often a sequence took part in a step."""
    return sum(len(record["run"]) for record in map(json.loads, told.journal) if "run" in record)


@pytest.fixture(scope="module")
def reference(model: Model) -> Told:
    return run(model, requests(model))


def test_answers_match_their_grammars(model: Model, reference: Told) -> None:
    assert reference.errors == []
    for name in ("greedy", "drawn", "narrow", "punished", "watched"):
        for key in [key for key in reference.tokens if key[0] == name]:
            assert reference.finish[key] is FinishReason.STOP
            jsonschema.validate(json.loads(reference.text(model, *key)), PERSON)
    if reference.finish["biased", 0] is FinishReason.STOP:
        assert isinstance(json.loads(reference.text(model, "biased")), dict)
    assert reference.finish["short", 0] is FinishReason.LENGTH and len(reference.tokens["short", 0]) == 5
    assert {reference.text(model, "word", i) for i in range(2)} <= {"yes", "no way", "no", "naïve 🙂"}
    assert len(set(map(tuple, reference.tokens.values()))) > 10


def test_forced_tokens_took_no_step(model: Model, reference: Told) -> None:
    stats, grammars = reference.stats, reference.grammars
    assert stats.forced_tokens > 80
    assert stats.forced_tokens <= grammars.forced_tokens
    assert grammars.masks > 0 and grammars.mask_seconds > 0 and grammars.failures == 0
    assert grammars.steps <= stats.steps


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_every_way_gives_the_same_tokens(model: Model, reference: Told, way: Way) -> None:
    told = run(model, requests(model), way)
    assert told.errors == []
    assert told.tokens == reference.tokens
    assert told.finish == reference.finish
    assert told.details == reference.details, "logprobs differ"
    assert (told.stats.forced_tokens > 0) == way.forced
    if way.preempt_every or not way.many:
        assert told.stats.preemptions > 0
    if way == Way(forced=False):
        assert turns(told) > turns(reference)


def test_a_journal_of_forced_tokens_replays(reference: Told) -> None:
    assert any(len(json.loads(line)["tokens"]) > len(json.loads(line)["run"]) for line in reference.journal[20:])
    assert replay(reference.journal) == reference.journal


def test_logprobs_are_the_models_own_for_every_token(model: Model, reference: Told) -> None:
    """A request with logprobs takes every step; its tokens are those of the same request without."""
    details = reference.details["watched", 0]
    assert len(details) == len(reference.tokens["watched", 0]) and None not in details
    assert min(detail.logprob for detail in details) < -1.0, "forced tokens are rarely what random weights would say"
    again = replace(
        requests(model)[0], id="watched", prompt=requests(model)[5].prompt, sampling=requests(model)[0].sampling
    )
    told = run(model, [again])
    assert told.tokens["watched", 0] == reference.tokens["watched", 0]
    assert set(told.details["watched", 0]) == {None} and told.stats.forced_tokens > 0


def test_choices_of_one_request_go_their_own_ways(model: Model) -> None:
    """Forced tokens right after the prompt, then choices that part: each has its own place in the grammar."""
    params = constrained(model, "choice", ["start left end", "start right end"], temperature=2.0, n=8)
    told = run(model, [request(model, "n", params)])
    texts = {told.text(model, "n", i) for i in range(8)}
    assert texts == {"start left end", "start right end"}
    assert told.stats.forced_tokens > 8


@pytest.mark.parametrize("forced", [True, False])
def test_a_vocabulary_of_sentencepiece(tmp_path: Path, forced: bool) -> None:
    """Spaces at the beginning, bytes for what has no piece: the text is what the grammar says, to the byte."""
    model = make_model(tmp_path, sentencepiece(), SENTENCEPIECE_CONFIG)
    choices = [" leading", "naïve 🙂 x", "no", "two  spaces"]
    params = constrained(model, "choice", choices, temperature=2.0, n=8)
    schema = constrained(model, "json_schema", PERSON, temperature=1.0)
    told = run(model, [request(model, "word", params), request(model, "json", schema)], Way(forced=forced))
    assert told.errors == []
    assert {told.text(model, "word", i) for i in range(8)} <= set(choices)
    jsonschema.validate(json.loads(told.text(model, "json")), PERSON)
    if forced:
        plain = run(model, [request(model, "word", params), request(model, "json", schema)], Way(forced=False))
        assert plain.tokens == told.tokens
