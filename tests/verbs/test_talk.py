"""What a talk can say, and what it hears: chats, values, branches, tools."""

import asyncio
import json
import random
import runpy
import shutil
import threading
import time
from pathlib import Path

import pytest
from talks import Brain, once, rows

import limbeck as lb
from limbeck import store
from limbeck.errors import Refused
from limbeck.models.fake import Fake
from limbeck.trace import trace
from tests.loopback import loopback


@pytest.fixture
def brain():
    return Brain()


def rejects(table):
    return table.meta["counts"]["rejected"]


# -- what is said and heard
def test_a_debate_of_two_models_over_three_turns(run):
    pro = Fake(lambda r: f"pro {len(r.messages)}", name="pro")
    con = Fake(lambda r: f"con {len(r.messages)}", name="con")

    async def debate(row, call):
        said = await call("pro", "Is it so? {prompt}", system="Be brief.")
        for _ in range(3):
            said = await call("con", [*said.messages, {"role": "user", "content": "Against?"}])
            said = await call("pro", [*said.messages, {"role": "user", "content": "For?"}])
        return {**row, "messages": said.messages}

    made = lb.converse(rows(3), debate, pro=pro, con=con)
    assert [m["content"] for m in made.head(1)[0]["messages"]] == [
        "Be brief.", "Is it so? question 0", "pro 2", "Against?", "con 4", "For?", "pro 6", "Against?", "con 8", "For?",
        "pro 10", "Against?", "con 12", "For?", "pro 14",
    ]  # fmt: skip
    assert pro.calls == 12 and con.calls == 9 and [r["prompt"] for r in made] == [f"question {i}" for i in range(3)]


def test_a_value_is_what_parse_the_schema_or_the_prompts_parser_makes_of_the_reply(run):
    wants = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    listing = lb.Prompt("list", "List {prompt}", ("prompt",), "items", lb.parse.get("lines"))
    said = {"Rate": "I say 7", "JSON": '{"n": 3', "List": "1. a\n2. b", "Plain": "x", "Bad": "none"}

    async def talk(row, call):
        assert (await call("m", "Rate {prompt}", parse="number")).value == 7
        assert (await call("m", "JSON {prompt}", schema=wants)).value == {"n": 3}
        assert (await call("m", listing)).value.values == ["a", "b"]
        assert (await call("m", "Plain {more}", values={"more": "words"})).value == "x"
        return (await call("m", "Bad {prompt}", parse="number")).value

    made = lb.converse(rows(1), talk, m=Fake(lambda r: said[r.messages[-1]["content"].split()[0]]))
    assert list(rejects(made).values()) == [1]
    assert next(store.read(made.path / "rejects.parquet"))["_detail"] == "none"


def test_rows_rejects_refusals_and_nothing_are_counted(run):
    def refuse(request):
        raise Refused("content filter")

    async def talk(row, call):
        kind = int(row["prompt"][-1])
        if kind == 0:
            return [{**row, "part": 1}, {**row, "part": 2}, lb.Reject("third part")]
        if kind == 1:
            return lb.Reject("not wanted")
        if kind == 2:
            await call("model", "{prompt}")
        return [] if kind == 3 else row

    model = Fake(refuse)
    made = lb.converse(rows(5), talk, model=model)
    assert [(r["prompt"], r.get("part")) for r in made] == [("question 0", 1), ("question 0", 2), ("question 4", None)]
    assert rejects(made) == {"third part": 1, "not wanted": 1, "refused: content filter": 1, "gave no row": 1}

    async def mended(row, call):
        try:
            return {**row, "response": (await call("model", "{prompt}")).text}
        except Refused as refusal:
            return {**row, "response": f"no: {refusal}"}

    assert lb.converse(rows(5), mended, model=model).head(3)[2]["response"] == "no: content filter"
    assert model.calls == 5  # the refusal was held already


def test_refusals_in_a_task_group_reject_the_row(run):
    def refuse(request):
        raise Refused("no")

    async def talk(row, call):
        async with asyncio.TaskGroup() as group:
            for branch in range(2):
                group.create_task(call("m", "{prompt}", branch=branch))

    assert rejects(lb.converse(rows(2), talk, m=Fake(refuse))) == {"refused: no": 2}


def test_a_row_without_what_a_prompt_takes_is_rejected(run, brain):
    table = lb.Table.from_rows([{"prompt": "a"}, {"text": "b"}])
    made = lb.converse(table, once, model=Fake(brain))
    assert len(made) == 1 and rejects(made) == {"no prompt": 1} and brain.calls == 1


def test_a_talk_fills_prompts_from_the_row_as_it_has_made_it(run):
    async def talk(row, call):
        row["draft"] = (await call("m", "Draft {prompt}")).text
        return row | {"final": (await call("m", "Mend {draft}")).text}

    (row,) = lb.converse(rows(1), talk, m=Fake(lambda r: f"<{r.messages[-1]['content']}>"))
    assert row["final"] == "<Mend <Draft question 0>>" and row["draft"] == "<Draft question 0>"


def test_lineage_names_the_calls_of_a_talk_in_their_order(run, brain, tmp_path):
    async def talk(row, call):
        first = await call("model", "first {prompt}")
        await call.tool(time.time)
        return {**row, "response": first.text + (await call("model", "second {prompt}")).text}

    table = rows(2)
    made = lb.converse(table, talk, model=Fake(brain))
    step, seed = trace(run.dir, f"{made.name}:1")
    assert [c["kind"] for c in step["calls"]] == ["chat", "tool", "chat"] and seed["row"] == {"prompt": "question 1"}
    asked = [c["request"]["messages"][-1]["content"] for c in step["calls"] if c["kind"] == "chat"]
    assert asked == ["first question 1", "second question 1"]
    assert {c["row"] for c in step["calls"]} == {table.row_digests[16:].hex()}


# -- branches
async def tree(row, call):
    """Two thoughts at each of three nodes, in branches that go on at once."""

    async def grow(call, path, depth):
        thoughts = await asyncio.gather(*(call("m", "Think: {prompt}", branch=i) for i in range(2)))
        if depth == 0:
            return [t.text for t in thoughts]
        return sum(await asyncio.gather(*(grow(call.branch(i), [*path, i], depth - 1) for i in range(2))), [])

    return {**row, "leaves": await grow(call, [], 1)}


def test_branches_say_the_same_words_and_each_is_counted_apart(tmp_path, brain):
    async def slow(request):
        await asyncio.sleep(random.random() / 50)
        return brain(request)

    def go():
        with lb.Run(tmp_path, progress=False):
            return list(lb.converse(rows(3), tree, m=Fake(slow)))

    first = go()
    assert brain.calls == 18 and all(len(set(r["leaves"])) == 4 for r in first)
    shutil.rmtree(tmp_path / "stages")
    assert go() == first and brain.calls == 18


def test_the_same_words_in_two_tasks_want_a_branch(run, brain):
    async def talk(row, call):
        await asyncio.gather(call("m", "{prompt}"), call("m", "{prompt}"))
        return row

    async def tools(row, call):
        await asyncio.gather(call.tool(random.random), call.tool(random.random))

    with pytest.raises(lb.LimbeckError, match="m was told 'question 0' in two tasks .* Pass branch="):
        lb.converse(rows(1), talk, m=Fake(brain))
    with pytest.raises(lb.LimbeckError, match="tool Random.random .* in two tasks .* Pass branch="):
        lb.converse(rows(1), tools)


class Background:
    task = None


def test_a_call_after_the_talk_returned_is_an_error_of_its_own(run):
    told = []

    async def late(call):
        await asyncio.sleep(0.02)
        try:
            await call("m", "too late")
        except lb.LimbeckError as error:
            told.append(str(error))

    async def talk(row, call):
        Background.task = asyncio.create_task(late(call))
        return row

    async def waits(row, call):
        await Background.task
        return row

    lb.converse(rows(1), talk, m=Fake(lambda r: "x"))
    lb.converse(rows(1), waits)
    assert "await every branch before the return" in told[0]


# -- tools
def test_a_tool_runs_once_and_is_no_call(tmp_path):
    ran = []

    def search(query, *, top):
        ran.append(query)
        assert threading.current_thread().name.startswith("limbeck-tool")
        return ({"hit": query, "of": top}, random.random())

    async def fetch(url):
        ran.append(url)
        await asyncio.sleep(0)
        return lb.Reject("404") if url.endswith("1") else url

    async def talk(row, call):
        hits = await call.tool(search, row["prompt"], top=3)
        picked = await call.tool(random.choice, list(range(1000)))
        return {**row, "hits": hits, "page": str(await call.tool(fetch, row["prompt"])), "picked": picked,
                "at": [await call.tool(time.time) for _ in range(2)]}  # fmt: skip

    def go():
        with lb.Run(tmp_path, progress=False, budget="0 calls") as run:
            made = list(lb.converse(rows(2), talk))
            assert run.ledger.spent() == {"calls": 0, "tokens": 0, "money": 0}
            return made

    first = go()
    shutil.rmtree(tmp_path / "stages")
    assert go() == first and sorted(ran) == ["question 0"] * 2 + ["question 1"] * 2
    assert first[0]["hits"][0] == {"hit": "question 0", "of": 3} and "404" in first[1]["page"]
    assert first[0]["at"][0] < first[0]["at"][1]


def test_what_a_tool_raises_is_raised_in_the_talk_and_not_kept(run):
    tries = []

    def flaky(x):
        tries.append(x)
        if len(tries) == 1:
            raise OSError("no network")
        return x

    async def talk(row, call):
        try:
            await call.tool(flaky, 1)
        except OSError as error:
            return {**row, "said": str(error)}
        return row

    assert lb.converse(rows(1), talk).head() == [{"prompt": "question 0", "said": "no network"}]
    assert lb.converse(rows(1), talk, salt=0, on="prompt").head() == [{"prompt": "question 0"}] and len(tries) == 2


@pytest.mark.parametrize(
    ("given", "says"), [("object", "takes JSON data alone"), ("set", "gave what JSON cannot hold")]
)
def test_a_tool_takes_and_gives_plain_data(run, given, says):
    def odd(x):
        return {x}

    async def talk(row, call):
        await call.tool(odd, object() if given == "object" else given)

    with pytest.raises(lb.LimbeckError, match=f"the tool .*odd {says}"):
        lb.converse(rows(1), talk)


def add(a: int, b: "int | None" = None) -> int:
    """Adds two numbers."""
    return a + (b or 0)


def calculator(messages, k):
    """A model that uses a tool: first wrongly, then rightly, then says what it was told."""
    told = [m["content"] for m in messages if m["role"] == "tool"]
    if len(told) == 2:
        return f"it is {told[1]}; first: {told[0]}"
    arguments = json.dumps({"a": 2, "b": 3} if told else {"x": 1})
    asked = {"id": f"call-{len(told)}", "type": "function", "function": {"name": "add", "arguments": arguments}}
    return {"message": {"role": "assistant", "content": None, "tool_calls": [asked]}, "finish_reason": "tool_calls"}


def test_a_model_uses_tools_until_it_answers(tmp_path):
    async def talk(row, call):
        said = await call.with_tools("m", "{prompt}", [add], system="You add.", branch="b")
        return {**row, "response": said.text, "messages": said.messages}

    def go():
        with lb.Run(tmp_path, progress=False):
            return list(lb.converse(rows(2), talk, m=lb.models.get("openai/m", base_url=server.url)))

    with loopback(fn=calculator) as server:
        first = go()
        shutil.rmtree(tmp_path / "stages")
        assert go() == first and server.bought == 6
    assert first[0]["response"].startswith("it is 5; first: error: missing a required argument")
    assert [m["role"] for m in first[0]["messages"]] == [
        "system", "user", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert server.requests[0]["body"]["tools"] == [
        {"type": "function", "function": {"name": "add", "description": "Adds two numbers.", "parameters": {
            "type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a"]}}}
    ]  # fmt: skip


def test_a_model_that_goes_on_using_tools_is_stopped_after_some_turns(run):
    asked = {"id": "1", "type": "function", "function": {"name": "nothing", "arguments": "{}"}}
    model = Fake(lambda r: lb.Reply("", finish="tool_calls", tool_calls=[asked]), can=("chat", "tools"))

    async def talk(row, call):
        said = await call.with_tools("m", "{prompt}", [add], max_turns=3)
        return {**row, "finish": said.finish, "told": said.messages[-2]["content"]}

    (row,) = lb.converse(rows(1), talk, m=model)
    assert row["finish"] == "tool_calls" and row["told"] == "error: there is no tool 'nothing'; there are add"
    assert model.calls == 3


def test_the_page_about_talks_runs_as_it_is_written(tmp_path, monkeypatch, capsys):
    page = (Path(lb.__file__).parents[1] / "docs" / "talks.md").read_text()
    script = tmp_path / "page.py"
    script.write_text(page.split("```python\n")[1].split("```")[0])
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script), run_name="page")
    assert capsys.readouterr().out.count("Yes, because of the taste.") == 2
