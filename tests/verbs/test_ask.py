"""ask buys what the ledger lacks, once, and turns each reply into rows or a reason."""

import random
from collections import Counter

import pytest

import limbeck as lb
from limbeck import store
from limbeck.models.fake import Fake


class Brain:
    """A model that answers with a number that goes up: what is bought twice shows."""

    def __init__(self, fn=None):
        self.calls = 0
        self.seen = []
        self.fn = fn or (lambda request: f"reply {self.calls}")

    def __call__(self, request):
        self.calls += 1
        self.seen.append(request)
        return self.fn(request)


@pytest.fixture
def brain():
    return Brain()


def rows(n=4):
    return lb.Table.from_rows({"prompt": f"question {i}"} for i in range(n))


def test_replies_come_in_input_order_whatever_order_they_arrive_in(run):
    import asyncio

    async def slow(request):
        await asyncio.sleep(random.random() / 20)
        return "re: " + request.messages[-1]["content"]

    made = lb.ask(rows(20), Fake(slow), "{prompt}?")
    assert [r["response"] for r in made] == [f"re: question {i}?" for i in range(20)]


def test_running_again_and_deleting_stages_buys_nothing(tmp_path, brain):
    import shutil

    def go():
        with lb.Run(tmp_path, progress=False):
            return list(lb.ask(rows(), Fake(brain), "{prompt}", n=2))

    first = go()
    assert brain.calls == 8 and go() == first
    shutil.rmtree(tmp_path / "stages")
    assert go() == first and brain.calls == 8


def test_more_draws_buy_only_the_new_ones(run, brain):
    model = Fake(brain)
    four = list(lb.ask(rows(), model, "{prompt}", n=4))
    eight = list(lb.ask(rows(), model, "{prompt}", n=8))
    assert brain.calls == 32
    assert [r for i, r in enumerate(eight) if i % 8 < 4] == four


def test_equal_rows_are_separate_draws_and_keep_their_own_reply(run, brain):
    table = lb.Table.from_rows([{"prompt": "same"}] * 5 + [{"prompt": "other"}])
    replies = [r["response"] for r in lb.ask(table, Fake(brain), "{prompt}")]
    assert brain.calls == 6 and len(set(replies)) == 6
    more = lb.Table.from_rows([{"prompt": "same"}] * 6)
    assert [r["response"] for r in lb.ask(more, Fake(brain), "{prompt}")][:5] == replies[:5]


def test_a_key_is_made_of_what_was_set_and_nothing_else(run, brain):
    model = Fake(brain)
    lb.ask(rows(1), model, "{prompt}")
    lb.ask(rows(1), model, "{prompt}", into="other", temperature=None, max_tokens=None)
    lb.ask(lb.fields(rows(1), extra_column="x"), model, "{prompt}")
    assert brain.calls == 1
    for changed in (
        {"temperature": 0.0},
        {"max_tokens": 5},
        {"salt": 1},
        {"extra": {"top_k": 1}},
        {"system": "be brief"},
    ):
        lb.ask(rows(1), model, "{prompt}", **changed)
    assert brain.calls == 6


def test_golden_call_key(run, brain):
    """Keys are how paid replies are found again: a change of this test is a change of KEY_SCHEMA."""
    lb.ask(lb.Table.from_rows([{"prompt": "2 + 2?"}]), Fake(brain, name="golden"), "{prompt}", temperature=0.5, salt=3)
    run.ledger.flush()
    assert run.ledger.have(["4bc5295c913e908d8cc81a56c48fb816"]) == {"4bc5295c913e908d8cc81a56c48fb816"}


def test_shards_together_equal_the_whole(run, brain):
    table = lb.Table.from_rows({"prompt": f"q{i % 4}"} for i in range(11))
    model = Fake(brain)
    parts = [list(lb.ask(table, model, "{prompt}", n=2, shard=(i, 3))) for i in range(3)]
    bought = brain.calls
    whole = list(lb.ask(table, model, "{prompt}", n=2))
    assert brain.calls == bought == 22
    assert Counter(map(str, whole)) == Counter(str(r) for part in parts for r in part)
    with pytest.raises(lb.LimbeckError, match="0 <= offset < stride"):
        lb.ask(table, model, "{prompt}", shard=(3, 3))


def test_settings_may_come_from_a_column(run, brain):
    table = lb.Table.from_rows([{"prompt": "a", "t": 0.1}, {"prompt": "b", "t": 0.9}])
    lb.ask(table, Fake(brain), "{prompt}", temperature=lb.Column("t"))
    assert sorted(r.temperature for r in brain.seen) == [0.1, 0.9]


def test_chat_messages_and_prompt_names_may_come_from_a_column(run, brain):
    chat = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "{x}"},
    ]
    lb.ask(lb.Table.from_rows([{"messages": chat}]), Fake(brain), lb.Column("messages"))
    assert brain.seen[0].messages == chat  # and what a row holds is never scanned for slots
    with pytest.raises(lb.LimbeckError, match="chat messages or the name of a prompt"):
        lb.ask(lb.Table.from_rows([{"op": "just some text"}]), Fake(brain), lb.Column("op"))


def test_shots_and_system_come_before_the_question(run, brain):
    shown = [{"prompt": "1 + 1", "response": "2"}]
    lb.ask(rows(1), Fake(brain), "{prompt}", shots=shown, system="You add.")
    assert [m["content"] for m in brain.seen[0].messages] == ["You add.", "1 + 1", "2", "question 0"]


def test_several_writers_are_named(run):
    a, b = Fake(lambda r: "A", name="a"), Fake(lambda r: "B", name="b")
    made = lb.ask(rows(2), [a, b], "{prompt}")
    assert [(r["writer"], r["response"]) for r in made] == [("a", "A"), ("b", "B")] * 2


def test_what_does_not_parse_is_rejected_with_its_reply_kept(run):
    model = Fake(lambda r: "7" if "1" in r.messages[-1]["content"] else "no idea")
    made = lb.ask(rows(3), model, "{prompt}", parse="number", into="score")
    assert [r["score"] for r in made] == [7]
    rejects = list(store.read(made.path / "rejects.parquet"))
    assert len(rejects) == 2 and {r["_detail"] for r in rejects} == {"no idea"}
    assert sum(made.meta["counts"]["rejected"].values()) == 2


def test_many_values_become_many_rows(run):
    made = lb.ask(rows(1), Fake(lambda r: "1. red\n2. green\n3. blue"), "{prompt}", parse="lines", into="colour")
    assert [r["colour"] for r in made] == ["red", "green", "blue"]


def test_a_refusal_is_a_reject_and_is_not_asked_again(run):
    def refuse(request):
        raise lb.errors.Refused("content filter")

    brain = Brain(refuse)
    made = lb.ask(rows(2), Fake(brain), "{prompt}")
    assert len(made) == 0 and made.meta["counts"]["rejected"] == {"refused: content filter": 2}
    lb.ask(rows(2), Fake(brain), "{prompt}", into="again")
    assert brain.calls == 2


def test_a_truncated_reply_is_marked_and_kept(run):
    made = lb.ask(rows(1), Fake(lambda r: lb.Reply("half a", finish="length")), "{prompt}")
    assert list(made) == [{"prompt": "question 0", "response": "half a", "response_finish": "length"}]


def test_meta_columns(run):
    reply = lb.Reply("yes", reasoning="because", prompt_tokens=3, completion_tokens=1, served_model="m-1")
    (row,) = lb.ask(
        rows(1), Fake(lambda r: reply), "{prompt}", into="a", meta=("reasoning", "finish", "model", "usage")
    )
    assert row["a_reasoning"] == "because" and row["a_finish"] == "stop" and row["a_model"] == "m-1"
    assert row["a_usage"] == {"prompt_tokens": 3, "completion_tokens": 1}


def test_replacing_a_column_needs_to_be_said(run, brain):
    table = lb.Table.from_rows([{"prompt": "x", "response": "old"}])
    with pytest.raises(lb.LimbeckError, match="would replace the column 'response'; say into='response'"):
        lb.ask(table, Fake(brain), "{prompt}")
    (row,) = lb.ask(table, Fake(brain), "{prompt}", into="response")
    assert row["response"] == "reply 1"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"prompt": "Say {promt}"}, "promt"),
        ({"prompt": "no-such-prompt"}, "no prompt is called"),
        ({"n": 0}, "n as a whole number of at least 1"),
        ({"who": []}, "wants a model"),
        ({"who": [3]}, "wants a model"),
        ({"meta": ("finsh",)}, "finsh"),
        ({"logprobs": 3}, "logprobs"),
        ({"temperature": lb.Column("t")}, "wants a column 't'"),
    ],
)
def test_mistakes_are_told_before_anything_is_bought(run, brain, wrong, says):
    given = {"who": Fake(brain), "prompt": "{prompt}"} | wrong
    with pytest.raises(lb.LimbeckError, match=says):
        lb.ask(rows(), given.pop("who"), given.pop("prompt"), **given)
    assert brain.calls == 0


def test_another_served_model_stops_with_the_way_out(tmp_path):
    served = ["m-1"]
    model = Fake(lambda r: lb.Reply("x", served_model=served[0]), name="alias")
    with lb.Run(tmp_path, progress=False):
        lb.ask(rows(2), model, "{prompt}")
    served[0] = "m-2"
    with lb.Run(tmp_path, progress=False):
        assert len(lb.ask(rows(2), model, "{prompt}", into="same")) == 2  # replayed, nobody is asked
        with pytest.raises(lb.LimbeckError, match="served by 'm-1' so far and is now served by 'm-2'.*revision="):
            lb.ask(rows(3), model, "{prompt}", into="more")


def test_an_edited_prompt_stops_before_it_buys_again(tmp_path, brain):
    def go(prompt, n=1, accept_changes=False, **settings):
        with lb.Run(tmp_path, progress=False, accept_changes=accept_changes):
            return lb.ask(rows(), Fake(brain), prompt, n=n, **settings)

    go("{prompt}")
    for more in ({}, {"n": 2}):  # a changed argument beside it hides nothing
        with pytest.raises(lb.errors.ChangedError, match="calls .*are paid for already.*--accept-changes"):
            go("Please: {prompt}", **more)
    assert brain.calls == 4
    go("Please: {prompt}", accept_changes=True)
    assert brain.calls == 8
    go("{prompt}")
    go("{prompt}", n=2)
    assert brain.calls == 12
    go("Kindly: {prompt}", temperature=0.5)  # other settings are the user's wish
    assert brain.calls == 16


def test_more_rows_or_the_rest_of_a_partial_run_are_no_change(tmp_path, brain):
    for n, budget in ((3, None), (8, "6 calls"), (8, None)):
        try:
            with lb.Run(tmp_path, progress=False, budget=budget):
                lb.ask(rows(n), Fake(brain), "{prompt}")
        except lb.BudgetError:
            assert n == 8
    assert brain.calls == 8


def test_replies_of_another_run_are_reused_for_free(tmp_path, brain):
    with lb.Run(tmp_path / "a", progress=False):
        first = list(lb.ask(rows(), Fake(brain), "{prompt}"))
    with lb.Run(tmp_path / "b", progress=False, reuse=[tmp_path / "a"], budget="1 call") as run:
        assert list(lb.ask(rows(), Fake(brain), "{prompt}")) == first
        assert run.ledger.spent()["calls"] == 0
    assert brain.calls == 4


def test_a_table_without_rows_asks_nobody_and_lacks_no_column(run, brain):
    nothing = lb.ask(lb.where(rows(), prompt="none"), Fake(brain), "{prompt} {more}")
    assert len(lb.keep(nothing, lambda r: r["response"] == "x")) == 0
    assert len(lb.dedup(lb.pick(nothing, by="prompt", vote="answer"), on="response")) == 0
    assert brain.calls == 0


def test_an_edited_prompt_that_rows_name_is_asked_anew(run, brain, tmp_path):
    run.search = [tmp_path]
    table = lb.Table.from_rows([{"prompt": "x", "how": "mine"}])
    for words in ("First {prompt}", "Second {prompt}"):
        (tmp_path / "mine.md").write_text(f"---\ninputs: [prompt]\n---\n{words}\n")
        lb.ask(table, Fake(brain), lb.Column("how"), into="said")
    assert [r.messages[0]["content"] for r in brain.seen] == ["First x", "Second x"]


def test_a_row_without_what_the_prompt_takes_is_rejected_and_not_asked(run, brain):
    table = lb.Table.from_rows([{"prompt": "a"}, {"text": "no prompt"}, {"prompt": None}, {"prompt": "b"}])
    made = lb.ask(table, Fake(brain), "{prompt}", n=2)
    assert [r["prompt"] for r in made] == ["a", "a", "b", "b"] and brain.calls == 4
    assert made.meta["counts"]["rejected"] == {"no prompt": 2}
    halves = [lb.ask(table, Fake(brain), "{prompt}", n=2, shard=(i, 2)) for i in range(2)]
    assert [h.meta["counts"]["rejected"] for h in halves] == [{"no prompt": 1}, {"no prompt": 1}]


def test_a_limit_of_the_models_own_is_part_of_the_key(run):
    short, long = (lb.models.get("fake/echo", max_output=n) for n in (5, 80))
    lb.ask(rows(1), short, "{prompt}")
    lb.ask(rows(1), long, "{prompt}", into="longer")
    assert run.ledger.spent()["calls"] == 2


def test_a_number_is_said_the_same_whatever_stands_in_other_rows(run, brain):
    lb.ask(lb.Table.from_rows([{"x": 1}, {"x": 2.5}]), Fake(brain), "Is {x} big?")
    lb.ask(lb.Table.from_rows([{"x": 1}]), Fake(brain), "Is {x} big?", into="alone")
    assert brain.calls == 2


def test_a_mark_of_an_earlier_reply_does_not_outlive_it(run):
    said = iter([lb.Reply("half", finish="length"), lb.Reply("whole")])
    model = Fake(lambda r: next(said))
    again = lb.ask(lb.ask(rows(1), model, "{prompt}"), model, "{prompt}", into="response", salt=1)
    assert list(again) == [{"prompt": "question 0", "response": "whole"}]


def test_replies_of_a_wrong_model_are_paid_for_and_kept_apart(tmp_path):
    sold = []

    def brain(request):
        sold.append(1)
        return lb.Reply("x", served_model="m-1" if len(sold) < 4 else "m-2", cost=0.5)

    for n in (3, 8):
        try:
            with lb.Run(tmp_path, progress=False):
                lb.ask(rows(n), Fake(brain), "{prompt}", salt=n)
        except lb.LimbeckError as error:
            assert "now served by 'm-2'" in str(error)
    with lb.Run(tmp_path, progress=False) as run:
        assert run.ledger.spent()["calls"] == len(sold) and run.ledger.spent()["money"] == 0.5 * len(sold)
