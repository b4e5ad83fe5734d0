"""One running batch of a local model: who joins when, what it may take, and what everyone who waits hears."""

import asyncio
import subprocess
import sys

import pytest

torch = pytest.importorskip("torch")

from limbeck.errors import LimbeckError, Refused  # noqa: E402
from limbeck.models import Request, batching, cache, chat, generate, get  # noqa: E402
from limbeck.models.tiny import problems  # noqa: E402

QUESTIONS = [p["prompt"] for p in problems(40, seed=9)]


@pytest.fixture
def teacher():
    made = get("tiny/teacher")
    yield made
    made.end_worker()


def user(i: int, **fields) -> Request:
    return Request([{"role": "user", "content": QUESTIONS[i]}], **{"max_tokens": 40, "temperature": 0.7} | fields)


def ask(model, *requests, first=0):
    """The replies to requests that come at once; a request's key is its place, counted from `first`."""

    async def go():
        tries = (model.reply(r, f"{i:x}") for i, r in enumerate(requests, first))
        return await asyncio.gather(*tries, return_exceptions=True)

    return asyncio.run(go())


@pytest.fixture
def widths(monkeypatch):
    """The rows of every run of the model over a step's tokens."""
    seen, real = [], cache.run

    def run(model, ids_bt, *rest):
        if ids_bt.shape[1] == 1:
            seen.append(len(ids_bt))
        return real(model, ids_bt, *rest)

    monkeypatch.setattr(cache, "run", run)
    return seen


def test_a_request_joins_a_running_batch_and_leaves_before_it_ends(teacher, widths):
    async def go():
        long = asyncio.ensure_future(teacher.reply(user(0, max_tokens=100, temperature=3.0), "1"))
        while len(widths) < 5:
            await asyncio.sleep(0.001)
        short = await teacher.reply(user(1, max_tokens=3), "2")
        return short, long.done(), await long

    teacher.__dict__["ends"] = frozenset()  # so that only max_tokens ends them
    short, was_done, long = asyncio.run(go())
    assert short.completion_tokens == 3 and not was_done and long.completion_tokens == 100
    assert 2 in widths and widths.count(2) <= 3
    assert ask(teacher, user(1, max_tokens=3), first=2)[0].token_ids == short.token_ids


def test_rows_that_leave_are_followed_by_those_that_wait(teacher, widths):
    teacher.most_rows = 8
    replies = ask(teacher, *(user(i) for i in range(40)))
    steps, tokens = len(widths), sum(r.completion_tokens for r in replies)
    assert max(widths) == 8 and tokens / (8 * steps) > 0.7  # the batch was kept full nearly to the end
    for i in (0, 9, 39):
        assert ask(teacher, user(i), first=i)[0].token_ids == replies[i].token_ids


def test_a_batch_keeps_within_its_tokens(teacher, widths):
    longest = max(len(chat.encode(teacher.tokenizer, user(i), "it")) for i in range(20))
    teacher.batch_tokens = 5 * (longest + 40)
    ask(teacher, *(user(i) for i in range(20)))
    assert 5 <= max(widths) <= 7
    widths.clear()
    teacher.batch_tokens = 10  # less than one row needs
    assert all(r.text for r in ask(teacher, user(0), user(1))) and max(widths) == 1


def test_draws_of_one_prompt_read_it_once(teacher, monkeypatch):
    seen, real = [], cache.run
    monkeypatch.setattr(cache, "run", lambda m, ids_bt, *a: seen.append(tuple(ids_bt.shape)) or real(m, ids_bt, *a))
    replies = ask(teacher, *[user(0, temperature=1.5)] * 12)
    assert [shape for shape in seen if shape[1] > 1] == [(1, replies[0].prompt_tokens - 1)]
    assert len({r.text for r in replies}) > 6


def test_settings_are_each_requests_own_in_one_batch(teacher, widths):
    mixed = [
        user(0, temperature=0.0), user(1, max_tokens=2), user(2, stop=("."), logprobs=2), user(3, top_p=0.5),
        user(4, temperature=2.0, logprobs=5), user(5, temperature=None, stop=("####", "nothing")),
    ]  # fmt: skip
    replies = ask(teacher, *mixed)
    assert max(widths) == len(mixed)
    for i, (request, reply) in enumerate(zip(mixed, replies, strict=True)):
        (alone,) = ask(teacher, request, first=i)
        assert (reply.text, reply.token_ids, reply.finish) == (alone.text, alone.token_ids, alone.finish)
        assert {len(e.get("top", ())) for e in reply.logprobs} == {request.logprobs or 0}
    assert replies[1].completion_tokens == 2 and "." not in replies[2].text and "####" not in replies[5].text


def test_out_of_memory_begins_anew_with_half_the_rows(teacher, monkeypatch):
    requests = [user(i) for i in range(12)]
    expected = [r.token_ids for r in ask(teacher, *requests)]
    real, sizes = cache.run, []

    def crowded(model, ids_bt, *rest):
        sizes.append(len(ids_bt))
        if len(ids_bt) > 4 and len(sizes) > 9:
            raise torch.OutOfMemoryError
        return real(model, ids_bt, *rest)

    monkeypatch.setattr(cache, "run", crowded)
    assert [r.token_ids for r in ask(teacher, *requests)] == expected and max(sizes) == 12
    monkeypatch.setattr(cache, "run", lambda *a: (_ for _ in ()).throw(torch.OutOfMemoryError()))
    errors = ask(teacher, *requests[:3])
    assert all(isinstance(e, LimbeckError) and "max_tokens" in str(e) for e in errors)


def test_a_failure_in_a_step_reaches_everyone_and_the_next_request_is_answered(teacher, monkeypatch):
    teacher.most_rows = 2
    monkeypatch.setattr(generate.Batch, "step", lambda self: 1 / 0)
    assert [type(e) for e in ask(teacher, *(user(i) for i in range(5)))] == [ZeroDivisionError] * 5
    monkeypatch.undo()
    assert ask(teacher, user(0))[0].text


def test_who_stops_waiting_is_not_told_and_holds_nobody_up(teacher):
    async def go():
        waits = [asyncio.ensure_future(teacher.reply(user(i), f"{i:x}")) for i in range(6)]
        await asyncio.sleep(0.02)  # the batch runs
        waits[2].cancel()
        waits[4].cancel()
        return await asyncio.gather(*waits, return_exceptions=True)

    replies = asyncio.run(go())
    assert [isinstance(r, asyncio.CancelledError) for r in replies] == [False, False, True, False, True, False]


def test_close_answers_what_was_asked(teacher):
    async def go():
        waits = [asyncio.ensure_future(teacher.reply(user(i), f"{i:x}")) for i in range(6)]
        await asyncio.sleep(0)
        await teacher.close()
        return await asyncio.wait_for(asyncio.gather(*waits), 10)

    assert all(r.text for r in asyncio.run(go()))


def test_a_small_model_takes_one_thread_and_gives_the_others_back(teacher, monkeypatch):
    weights, before = teacher.weights(), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with batching.threads(weights):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(weights, "num_parameters", lambda: 10**9)
        with batching.threads(weights):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_embedding_is_the_mean_of_the_last_layer_and_has_length_one(teacher):
    texts = ["Mia has 3 apples.", QUESTIONS[0], "How many pens does Tom have?"]
    *vectors, reply = ask(teacher, *(Request([], embed=text) for text in texts), user(0))
    assert reply.text and not vectors[0].text
    for text, embedded in zip(texts, vectors, strict=True):
        ids = torch.tensor([teacher.tokenizer(text)["input_ids"]])
        mean = teacher.hidden(ids, torch.ones_like(ids))[-1][0].mean(0)
        assert embedded.vector == pytest.approx((mean / mean.norm()).tolist(), abs=1e-5)
        assert embedded.prompt_tokens == ids.shape[1]
    assert isinstance(ask(teacher, Request([], embed=""))[0], Refused)
    assert isinstance(ask(teacher, Request([], embed="apples " * 3000))[0], Refused)


def test_a_schema_is_said_in_words(teacher):
    plain, said = ask(teacher, user(0), user(0, schema={"title": "apples"}))
    assert said.text and said.prompt_tokens > plain.prompt_tokens + 20
    ids = chat.encode(teacher.tokenizer, user(0, schema={"title": "apples"}), teacher.name)
    assert "apples" in teacher.tokenizer.decode(ids) and "apples" not in QUESTIONS[0]


def test_a_process_that_ends_in_the_middle_ends_well():
    code = """
import asyncio
from limbeck.models import Request, get
teacher = get("tiny/teacher")
teacher.__dict__["ends"] = frozenset()
async def go():
    ask = Request([{"role": "user", "content": "Mia has 3 apples."}], max_tokens=900, temperature=2.0)
    for i in range(20):
        asyncio.ensure_future(teacher.reply(ask, str(i)))
    await asyncio.sleep(0.5)
teacher.weights()
asyncio.run(go())
print("left", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
