"""What ask can be asked for beyond text: images, structured answers, another try, vectors."""

import base64
import json

import pytest

import limbeck as lb
from limbeck.errors import LimbeckError
from limbeck.models.base import Reply
from limbeck.models.fake import Fake

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def table(*rows):
    return lb.Table.from_rows(rows)


def seen(request):
    return json.dumps([p.get("type") for p in request.messages[-1]["content"]])


def test_images_are_sent_before_the_words_and_known_by_their_bytes(run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(PIXEL)
    model = Fake(seen, can=("chat", "vision"))
    first = lb.ask(table({"prompt": "what?", "image": str(tmp_path / "a.png")}), model, "{prompt}", images="image")
    assert first.head(1)[0]["response"] == '["image_url", "text"]'
    again = lb.ask(table({"prompt": "what?", "image": str(tmp_path / "b.png")}), model, "{prompt}", images="image")
    assert model.calls == 1 and again.head(1)[0]["response"]  # the same picture under another name
    (key,) = run.ledger.have([k for k in _keys(run)])
    body = run.ledger.call(key)["request"]["messages"][-1]["content"][0]
    assert body["type"] == "image" and body["kind"] == "image/png" and "base64" not in json.dumps(body)
    assert any(f.read_bytes() == PIXEL for f in (run.dir / "ledger").rglob("*") if f.is_file())


def _keys(run):
    from limbeck import store

    return [k for p in run.store.root.glob("ask-*/rows.parquet") for r in store.read(p, ["_call"]) for k in r["_call"]]


def test_a_row_without_its_image_is_rejected_and_not_asked(run):
    model = Fake(seen, can=("chat", "vision"))
    rows = table({"prompt": "x", "image": "https://a.example/x.png"}, {"prompt": "y"})
    assert lb.ask(rows, model, "{prompt}", images="image").size == 1 and model.calls == 1


def test_an_image_that_is_not_there_is_an_error_before_anything_is_asked(run):
    model = Fake(seen, can=("chat", "vision"))
    with pytest.raises(LimbeckError, match="cannot be read"):
        lb.ask(table({"prompt": "x", "image": "nowhere.png"}), model, "{prompt}", images="image")
    with pytest.raises(LimbeckError, match="vision"):
        lb.ask(table({"prompt": "x", "image": "nowhere.png"}), Fake(seen), "{prompt}", images="image")
    assert model.calls == 0


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def test_a_schema_gives_values_and_rejects_what_does_not_fit(run):
    model = Fake(lambda r: '{"n": 7}' if "seven" in r.messages[-1]["content"] else '{"n": "many"}')
    rows = table({"prompt": "seven"}, {"prompt": "lots"})
    made = lb.ask(rows, model, "{prompt}", schema=SCHEMA, into="made")
    assert [r["made"] for r in made] == [{"n": 7}]


def test_again_tells_the_model_what_was_wrong_and_pays_once(run):
    def brain(request):
        wrong = [m for m in request.messages if m["role"] == "assistant"]
        return '{"n": 7}' if wrong else '{"n": "seven"}'

    model, rows = Fake(brain), table({"prompt": "a"}, {"prompt": "b"})
    made = lb.ask(rows, model, "{prompt}", schema=SCHEMA, into="made", again=1)
    assert [r["made"] for r in made] == [{"n": 7}] * 2 and model.calls == 4
    from limbeck import store

    stored = list(store.read(made.path / "rows.parquet", ["_call"]))
    assert [len(r["_call"]) for r in stored] == [2, 2]
    import shutil

    shutil.rmtree(made.path)
    replayed = lb.ask(rows, model, "{prompt}", schema=SCHEMA, into="made", again=1)
    assert list(replayed) == list(made) and model.calls == 4


def test_a_reply_that_was_cut_off_is_asked_again_with_twice_the_room_only_if_told(run):
    def brain(request):
        whole = (request.max_tokens or 0) >= 40
        return Reply("whole" if whole else "cut", finish="stop" if whole else "length", completion_tokens=5)

    model, rows = Fake(brain), table({"prompt": "a"})
    marked = lb.ask(rows, model, "{prompt}", max_tokens=10).head(1)[0]
    assert (marked["response"], marked["response_finish"]) == ("cut", "length") and model.calls == 1
    longer = lb.ask(rows, model, "{prompt}", max_tokens=10, again=3).head(1)[0]
    assert longer["response"] == "whole" and "response_finish" not in longer and model.calls == 3
    one = lb.ask(rows, model, "{prompt}", max_tokens=10, again=1).head(1)[0]
    assert one["response"] == "cut" and model.calls == 3


def test_a_text_is_embedded_once(run):
    model = Fake(lambda r: Reply("", vector=[float(len(r.embed)), 1.5]), can=("embed",))
    rows = table({"prompt": "abc"}, {"prompt": "abcd"})
    made = lb.embed(rows, model)
    assert [r["embedding"] for r in made] == [[3.0, 1.5], [4.0, 1.5]] and model.calls == 2
    lb.embed(rows, model, "{prompt}", into="vector")
    assert model.calls == 2
    with pytest.raises(LimbeckError, match="makes vectors"):
        lb.embed(rows, Fake(str))


def test_a_cut_off_reply_is_kept_where_no_more_room_can_be_had(run):
    """Neither is the model asked for more than it can write, nor does a refusal cost the reply that was there."""
    asked = []

    def brain(request):
        asked.append(request.max_tokens)
        if request.max_tokens > 100:
            raise lb.errors.Refused("max_tokens is too large")
        return Reply("cut", finish="length", completion_tokens=request.max_tokens)

    small = lb.ask(table({"prompt": "a"}), Fake(brain, "small", max_output=60), "{prompt}", max_tokens=40, again=3)
    assert asked == [40, 60] and small.head(1)[0]["response_finish"] == "length"
    unknown = lb.ask(table({"prompt": "a"}), Fake(brain, "unknown"), "{prompt}", max_tokens=80, again=1)
    assert unknown.head(1)[0]["response"] == "cut" and asked == [40, 60, 80, 160]


def test_asking_again_never_takes_another_rows_draw(run):
    asked = []

    def brain(request):
        asked.append(request.max_tokens)
        return Reply(f"draw {len(asked)}", finish="length" if request.max_tokens < 400 else "stop")

    rows = table({"prompt": "same", "room": 100}, {"prompt": "same", "room": 200})
    made = lb.ask(rows, Fake(brain), "{prompt}", max_tokens=lb.Column("room"), again=1)
    assert sorted(asked) == [100, 200, 200, 400] and len({r["response"] for r in made}) == 2


@pytest.mark.parametrize(
    "wrong", [{"n": "4"}, {"temperature": "hot"}, {"logprobs": -1}, {"max_tokens": 0}, {"again": True}]
)
def test_settings_of_a_wrong_kind_are_errors_before_anything_is_asked(run, wrong):
    model = Fake(str, can=("chat", "logprobs"))
    with pytest.raises(LimbeckError, match=next(iter(wrong))):
        lb.ask(table({"prompt": "x"}), model, "{prompt}", **wrong)
    assert model.calls == 0
