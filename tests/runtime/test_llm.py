"""The Python interface over an executor that recites: requests, texts, stops, streams, failures."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from armillary import LLM, SamplingParams
from armillary.core.request import FinishReason
from armillary.core.step import Step, StepResult
from armillary.errors import ArmillaryError, Code
from armillary.models.tokenizer import Tokenizer
from armillary.runtime.output import Piece
from armillary.runtime.sampling import TokenLogprobs
from fake_engine import fake_engine
from small_tokenizers import BYTE_LEVEL_CONFIG, SENTENCEPIECE_CONFIG, byte_level, sentencepiece, write_tokenizer

EOS = 2


class Reciter:
    """An executor that answers the prompt `say X` with X and then the end-of-text token."""

    def __init__(self, tokenizer: Tokenizer, before: Callable[[Step], None] = lambda step: None) -> None:
        self.tokenizer = tokenizer
        self.before = before
        self.seen: list[Any] = []

    def run(self, step: Step) -> StepResult:
        self.before(step)
        tokens: list[int] = []
        details: list[object] = []
        for entry in step.entries:
            sequence = entry.sequence
            prompt = self.tokenizer.decode(sequence.tokens[: sequence.prompt_length])
            speech = prompt.split("say ")[-1].split("<")[0].rstrip("\n")
            speech = speech.removesuffix("\nassistant")
            script = [*self.tokenizer.encode(speech, add_special=False), EOS]
            for _ in range(entry.rows):
                token = script[min(sequence.generated, len(script) - 1)]
                tokens.append(token)
                details.append(TokenLogprobs(-0.5, [(token, -0.5)]))
            self.seen.append(sequence.request)
        return StepResult(tokens, details)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_tokenizer(tmp_path_factory.mktemp("t"), byte_level(), BYTE_LEVEL_CONFIG))


@pytest.fixture
def llms() -> Iterator[list[LLM]]:
    made: list[LLM] = []
    yield made
    for llm in made:
        llm.close()


def make(llms: list[LLM], tokenizer: Tokenizer, executor: Any = None, **settings: Any) -> LLM:
    engine = fake_engine(executor or Reciter(tokenizer), **{"max_context": 400, "num_blocks": 128, **settings})
    llms.append(LLM.over(engine, tokenizer, tokenizer.vocab_size))
    return llms[-1]


def test_generate_in_order_with_params_for_each(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    speeches = [f"answer {i} 你好🙂" for i in range(20)]
    each = [SamplingParams(max_tokens=100 - i) for i in range(20)]
    outputs = llm.generate([f"say {speech}" for speech in speeches], each)
    assert [output.text for output in outputs] == speeches
    for output, speech in zip(outputs, speeches, strict=True):
        assert output.finish_reason is FinishReason.STOP
        assert output.token_ids == [*tokenizer.encode(speech), EOS]
        assert output.prompt_token_ids == tokenizer.encode(f"say {speech}")
        assert output.error is None


def test_forms_of_prompts(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    params = SamplingParams(max_tokens=20)
    ids = tokenizer.encode("say yes")
    for prompts, count in (("say yes", 1), (ids, 1), (["say yes"], 1), ([ids, "say yes", ids], 3)):
        outputs = llm.generate(prompts, params)
        assert [output.text for output in outputs] == ["yes"] * count
    assert llm.generate([], params) == []
    with pytest.raises(TypeError, match="chat"):
        llm.generate([{"role": "user", "content": "x"}])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="generate"):
        llm.chat("say yes")  # type: ignore[arg-type]
    with pytest.raises(ArmillaryError):
        llm.generate(["a", "b"], [params])


def test_a_prompt_may_write_control_tokens_and_a_message_may_not(llms: list[LLM], tokenizer: Tokenizer) -> None:
    reciter = Reciter(tokenizer)
    llm = make(llms, tokenizer, reciter)
    params = SamplingParams(max_tokens=1)
    output = llm.generate("<|im_start|>user\nsay a<|im_end|>", params)[0]
    assert [i for i in output.prompt_token_ids if i in tokenizer.special_ids] == [1, 2]
    output = llm.chat([{"role": "user", "content": "<|im_end|>say a"}], params)[0]
    assert sum(i in tokenizer.special_ids for i in output.prompt_token_ids) == 3


def test_a_stream_whose_loop_was_closed_ends_quietly(
    llms: list[LLM], tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    closed = threading.Event()
    reciter = Reciter(tokenizer, lambda step: None if len(reciter.seen) < 8 else closed.wait(30) and None)
    llm = make(llms, tokenizer, reciter)
    loop = asyncio.new_event_loop()
    stream = llm.stream(f"say {'word ' * 15}", SamplingParams(max_tokens=90))
    assert loop.run_until_complete(anext(stream)).text
    loop.close()  # as an interrupt does
    closed.set()
    while llm.stats().open_requests:
        time.sleep(0.01)
    assert not [record for record in caplog.records if record.exc_info]


def test_chat_one_and_many(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    one = [{"role": "user", "content": "say hello"}]
    assert [o.text for o in llm.chat(one)] == ["hello"]
    two = [{"role": "user", "content": "say bye"}]
    assert [o.text for o in llm.chat([one, two, one])] == ["hello", "bye", "hello"]


def test_default_lengths(llms: list[LLM], tokenizer: Tokenizer) -> None:
    reciter = Reciter(tokenizer)
    llm = make(llms, tokenizer, reciter, max_context=100, num_blocks=20, block_size=4)
    output = llm.generate("say " + "x " * 25, SamplingParams(ignore_eos=True))[0]
    assert len(output.token_ids) == 16
    output = llm.chat([{"role": "user", "content": "say x"}], SamplingParams(ignore_eos=True))[0]
    # 20 blocks of 4 hold fewer tokens than the context; the last token needs no place.
    assert len(output.prompt_token_ids) + len(output.token_ids) == 81
    llm = make(llms, tokenizer, None, max_context=60)
    output = llm.chat([{"role": "user", "content": "say x"}], SamplingParams(ignore_eos=True))[0]
    assert len(output.prompt_token_ids) + len(output.token_ids) == 60


def test_stop_strings_end_the_choice_in_the_engine(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    outputs = llm.generate("say one two three four", SamplingParams(max_tokens=50, stop=("o th", "zzz"), n=2))
    for choice in outputs[0].choices:
        assert (choice.text, choice.finish_reason, choice.stop) == ("one tw", FinishReason.STOP, "o th")
        assert len(choice.token_ids) < len(tokenizer.encode("one two three four"))
    assert llm.worker.drain(10)
    counters = llm.stats().counters
    assert counters.finished[FinishReason.STOP] == 2 and sum(counters.finished.values()) == 2


def test_a_control_token_as_stop_string_stops(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    output = llm.generate("say a", SamplingParams(max_tokens=9, ignore_eos=True, stop=("<|im_end|>",)))[0]
    assert (output.text, output.finish_reason, output.token_ids[-1]) == ("a", FinishReason.STOP, EOS)


def test_stop_token_ids_and_ignore_eos(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    ids = tokenizer.encode("abc xyz")
    output = llm.generate("say abc xyz", SamplingParams(max_tokens=50, stop_token_ids=(ids[-1],)))[0]
    assert output.token_ids == ids and output.finish_reason is FinishReason.STOP
    assert output.text == tokenizer.decode(ids[:-1])
    output = llm.generate("say a", SamplingParams(max_tokens=7, ignore_eos=True))[0]
    assert output.finish_reason is FinishReason.LENGTH and len(output.token_ids) == 7


def test_logprobs_and_cached_tokens(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    params = SamplingParams(max_tokens=20, logprobs=1)
    prompt = "say a b c d e f g h i j k"
    first = llm.generate(prompt, params)[0]
    second = llm.generate(prompt, params)[0]
    for output in (first, second):
        choice = output.choices[0]
        assert choice.logprobs is not None and len(choice.logprobs) == len(choice.token_ids)
        assert [entry.top[0][0] for entry in choice.logprobs] == choice.token_ids
    assert first.choices[0].cached_tokens == 0
    assert 0 < second.choices[0].cached_tokens < len(second.prompt_token_ids)


@pytest.mark.parametrize(
    ("prompt", "params", "code"),
    [
        ("x " * 500, {}, Code.CONTEXT_LENGTH),
        ("say x", {"max_tokens": 1000}, Code.CONTEXT_LENGTH),
        ("", {}, Code.INVALID_REQUEST),
        ([], {}, Code.INVALID_REQUEST),
        ([1, 10**6], {}, Code.INVALID_REQUEST),
        ([-1], {}, Code.INVALID_REQUEST),
        ("\ud800", {}, Code.INVALID_REQUEST),
        ("say x", {"stop_token_ids": (10**6,)}, Code.INVALID_REQUEST),
        ("say x", {"logit_bias": {10**6: 1.0}}, Code.INVALID_REQUEST),
        ("say x", {"min_tokens": 20}, Code.INVALID_REQUEST),
        ("say x", {"n": 65}, Code.INVALID_REQUEST),
    ],
)
def test_one_bad_prompt_fails_alone(
    llms: list[LLM], tokenizer: Tokenizer, prompt: Any, params: dict[str, Any], code: Code
) -> None:
    llm = make(llms, tokenizer)
    good = SamplingParams(max_tokens=20)
    outputs = llm.generate(["say a", prompt, "say b"], [good, SamplingParams(**params), good])
    assert [output.text for output in outputs] == ["a", "", "b"]
    error = outputs[1].error
    assert error is not None and error.code is code and outputs[1].finish_reason is FinishReason.ERROR
    if code is Code.CONTEXT_LENGTH:
        assert error.message.startswith("This model's maximum context length is 400 tokens")


def test_what_never_fits_the_pool_is_refused(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer, None, num_blocks=4, block_size=4)
    error = llm.generate("say " + "x " * 30, SamplingParams(max_tokens=1))[0].error
    assert error is not None and error.code is Code.CANNOT_FIT and "4 " in error.message


def test_unset_seeds_are_drawn_and_set_ones_kept(llms: list[LLM], tokenizer: Tokenizer) -> None:
    reciter = Reciter(tokenizer)
    llm = make(llms, tokenizer, reciter)
    llm.generate(["say a", "say b"], SamplingParams(max_tokens=1))
    llm.generate("say c", SamplingParams(max_tokens=1, seed=7))
    seeds = [request.sampling.seed for request in reciter.seen]
    assert None not in seeds and len(set(seeds)) == 3 and 7 in seeds


def test_prompt_logprobs_do_without_the_cache(llms: list[LLM], tokenizer: Tokenizer) -> None:
    reciter = Reciter(tokenizer)
    llm = make(llms, tokenizer, reciter)
    prompt = "say a b c d e f g h i j k"
    llm.generate(prompt, SamplingParams(max_tokens=1))
    output = llm.generate(prompt, SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
    assert output.choices[0].cached_tokens == 0 and not reciter.seen[-1].reuse_prefix


def test_a_failing_step_is_the_output_of_its_request(llms: list[LLM], tokenizer: Tokenizer) -> None:
    def before(step: Step) -> None:
        if any(len(entry.sequence.request.prompt) == 1 for entry in step.entries):
            raise RuntimeError("kernel")

    llm = make(llms, tokenizer, Reciter(tokenizer, before))
    output = llm.generate([[5]], SamplingParams(max_tokens=3))[0]
    assert output.error is not None and output.error.code is Code.ENGINE_FAILED and "kernel" in output.error.message
    assert llm.generate("say a", SamplingParams(max_tokens=3))[0].text == "a"


def test_a_batch_larger_than_the_queue(llms: list[LLM], tokenizer: Tokenizer, capsys: Any) -> None:
    llm = make(llms, tokenizer, None, max_waiting=3, max_running=2)
    outputs = llm.generate([f"say {i}" for i in range(40)], SamplingParams(max_tokens=9), progress=True)
    assert [output.text for output in outputs] == [str(i) for i in range(40)]
    assert "40/40" in capsys.readouterr().out


def test_two_callers_share_a_small_queue(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer, None, max_waiting=2, max_running=2)
    found: dict[int, list[str]] = {}

    def caller(number: int) -> None:
        prompts = [f"say {number}-{i}" for i in range(20)]
        found[number] = [output.text for output in llm.generate(prompts, SamplingParams(max_tokens=9))]

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {number: [f"{number}-{i}" for i in range(20)] for number in range(3)}


def test_an_interrupt_cancels_the_batch(llms: list[LLM], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()

    def before(step: Step) -> None:
        entered.set()
        release.wait(10)

    llm = make(llms, tokenizer, Reciter(tokenizer, before))

    def interrupted(self: Any, timeout: float | None = None) -> None:
        entered.wait(10)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["say a long story", "say another"], SamplingParams(max_tokens=300, ignore_eos=True))
    release.set()
    assert llm.worker.drain(10)
    assert llm.stats().counters.finished[FinishReason.CANCELLED] == 2


# ---------------------------------------------------------------- streams


async def collect(llm: LLM, prompt: Any, params: SamplingParams | None = None) -> list[Piece]:
    return [piece async for piece in llm.stream(prompt, params)]


def test_streams_join_to_the_batch_text(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    params = SamplingParams(max_tokens=60, n=2, stop=("END",), logprobs=0)
    prompt = "say 你好，世界 🙂 naïve EN ENDless"
    whole = llm.generate(prompt, params)[0]

    async def run() -> list[list[Piece]]:
        return list(await asyncio.gather(*(collect(llm, prompt, params) for _ in range(5))))

    for pieces in asyncio.run(run()):
        for choice in whole.choices:
            own = [piece for piece in pieces if piece.index == choice.index]
            assert "".join(piece.text for piece in own) == choice.text == "你好，世界 🙂 naïve EN "
            assert [i for piece in own for i in piece.token_ids] == choice.token_ids
            assert [p.finish_reason for p in own if p.finish_reason] == [FinishReason.STOP]
            assert own[-1].finish_reason is FinishReason.STOP
            assert not any("�" in piece.text for piece in own)


def test_streams_of_conversations_and_ids(llms: list[LLM], tokenizer: Tokenizer) -> None:
    llm = make(llms, tokenizer)
    for prompt in ([{"role": "user", "content": "say hi"}], tokenizer.encode("say hi"), "say hi"):
        assert "".join(piece.text for piece in asyncio.run(collect(llm, prompt))) == "hi"


def test_leaving_a_stream_cancels(llms: list[LLM], tokenizer: Tokenizer) -> None:
    left = threading.Event()

    def before(step: Step) -> None:
        if step.index >= 3:  # or the generation might end before it is left
            left.wait(10)

    llm = make(llms, tokenizer, Reciter(tokenizer, before))

    async def run() -> None:
        stream = llm.stream("say a", SamplingParams(max_tokens=390, ignore_eos=True))
        async for _ in stream:
            break
        await stream.aclose()
        left.set()

    asyncio.run(run())
    assert llm.worker.drain(10)
    assert llm.stats().counters.finished[FinishReason.CANCELLED] == 1


def test_stream_errors(llms: list[LLM], tokenizer: Tokenizer) -> None:
    def before(step: Step) -> None:
        raise RuntimeError("kernel")

    llm = make(llms, tokenizer, Reciter(tokenizer, before))
    with pytest.raises(ArmillaryError) as caught:
        asyncio.run(collect(llm, "say a"))
    assert caught.value.code is Code.ENGINE_FAILED
    with pytest.raises(ArmillaryError) as caught:
        asyncio.run(collect(llm, "x " * 900))
    assert caught.value.code is Code.CONTEXT_LENGTH


def test_close_ends_what_is_pending(llms: list[LLM], tokenizer: Tokenizer) -> None:
    entered = threading.Event()
    llm = make(llms, tokenizer, Reciter(tokenizer, lambda step: entered.set()), max_context=100_000, num_blocks=30_000)
    found: list[Any] = []
    params = SamplingParams(max_tokens=90_000, ignore_eos=True)
    thread = threading.Thread(target=lambda: found.extend(llm.generate("say a", params)))
    thread.start()
    assert entered.wait(10)
    with llm:
        pass
    thread.join(10)
    assert found[0].error is not None and found[0].error.code is Code.ENGINE_FAILED
    refused = llm.generate("say a")[0].error
    assert refused is not None and refused.code is Code.UNAVAILABLE
    llm.close()


def test_completions_keep_the_leading_space_and_chats_do_not(llms: list[LLM], tmp_path: Any) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    config = {**SENTENCEPIECE_CONFIG, "chat_template": template}
    spaced = Tokenizer.from_folder(write_tokenizer(tmp_path, sentencepiece(), config))
    llm = make(llms, spaced)
    params = SamplingParams(max_tokens=20)
    assert llm.generate("say a b", params)[0].text == " a b"
    assert llm.chat([{"role": "user", "content": "say a b"}], params)[0].text == "a b"


def test_settings_are_checked_by_name() -> None:
    with pytest.raises(ArmillaryError) as caught:
        LLM("isles", no_such_setting=1)
    assert caught.value.code is Code.INVALID_DEPLOYMENT and "no_such_setting" in caught.value.message
