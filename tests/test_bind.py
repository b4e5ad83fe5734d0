"""Words bind to parameters: by annotation, and without one by what they look like."""

from __future__ import annotations

import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.bind import Source, bind, kind_of, pairs, scalar, schema, shaped
from limbeck.errors import LimbeckError
from limbeck.models.base import Model
from limbeck.recipe import registered
from limbeck.table import Table


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "n": i}) + "\n" for i in range(5)))
    return str(path)


def typed(
    prompts: Table,
    teacher: Model,
    student: Model | None = None,
    *,
    n: int = 1,
    rate: float = 0.5,
    name: str = "",
    fast: bool = False,
    kind: Literal["best", "random"] = "best",
    writers: list[Model] = (),
    ops: list[str] = (),
    steps: tuple[int, ...] = (),
    temperature: float | None = None,
):
    return prompts


def bare(rows, teacher, x=None, seed=0):
    return rows


def test_annotations_bind(rows):
    words = (
        f"prompts={rows} teacher=fake/echo n=3 rate=2 name=7 fast=yes kind=random ops=a,b steps=[1, 2] temperature=null"
    )
    given_ = pairs(words.replace("[1, 2]", "[1,2]").split())
    bound = bind(typed, given_, "typed")
    assert bound["prompts"] == Source(rows)
    assert bound["teacher"].name == "fake/echo"
    assert (bound["n"], bound["rate"], bound["name"], bound["fast"], bound["kind"]) == (3, 2.0, "7", True, "random")
    assert (bound["ops"], bound["steps"], bound["temperature"]) == (["a", "b"], (1, 2), None)
    assert isinstance(bound["rate"], float) and "student" not in bound


def test_values_bind_where_nothing_is_annotated(rows):
    assert bind(bare, {"rows": rows, "teacher": "fake/echo"}, "bare")["rows"] == Source(rows)
    for text, value in [("1", 1), ("1e-3", 0.001), ("true", True), ("null", None), ("plain words", "plain words")]:
        bound = bind(bare, {"rows": rows, "teacher": "fake/echo", "x": text}, "bare")
        assert bound["x"] == value and type(bound["x"]) is type(value)
    assert bind(bare, {"rows": rows, "teacher": "t", "x": "hf://org/name"}, "bare")["x"] == Source("hf://org/name")
    many = bind(bare, {"rows": rows, "teacher": "fake/echo,fake/echo"}, "bare")["teacher"]
    assert [m.name for m in many] == ["fake/echo", "fake/echo"]


def test_a_config_file_gives_values_of_their_own_types(rows):
    given_ = {"prompts": rows, "teacher": "fake/echo", "n": 4, "fast": True, "ops": ["a", "b"], "student": None}
    bound = bind(typed, given_, "typed")
    assert (bound["n"], bound["fast"], bound["ops"], bound["student"]) == (4, True, ["a", "b"], None)


def test_options_reach_the_model_and_the_table(rows):
    bound = bind(typed, {"prompts": "hf://a/b", "prompts.split": "test", "teacher": "fake/echo",
                         "teacher.max_concurrency": "3", "teacher.price": "1/2"}, "typed")  # fmt: skip
    assert bound["prompts"] == Source("hf://a/b", {"split": "test"})
    assert bound["teacher"].max_concurrency == 3 and bound["teacher"].price.output == 2.0


@pytest.mark.parametrize(
    ("given_", "words"),
    [
        ({"teacher": "fake/echo"}, ["typed wants prompts", "a table", "prompts=…"]),
        ({"promts": "x"}, ["takes no 'promts'", "did you mean 'prompts'"]),
        ({"teacher": "fake/ehco"}, ["teacher", "fake/echo"]),
        ({"teacher": "fakes/echo"}, ["teacher", "fake/echo"]),
        ({"teacher.base_url": "x"}, ["teacher.base_url", "not given"]),
        ({"teacher": "fake/echo", "teacher.revison": "x"}, ["revison", "did you mean 'revision'"]),
        ({"n": "many"}, ["typed: n is 'many'", "a whole number"]),
        ({"n": "1.5"}, ["a whole number"]),
        ({"n": "null"}, ["n is 'null'", "a whole number"]),
        ({"n": None}, ["n is null"]),
        ({"fast": "2"}, ["true or false"]),
        ({"kind": "rando"}, ["'best', 'random'", "did you mean 'random'"]),
        ({"prompts": "nothing.jsonl"}, ["there is no file nothing.jsonl"]),
        ({"prompts": "fake/echo"}, ["is the model 'fake/echo'", "a table"]),
        ({"name.x": "1", "name": "a"}, ["option 'x'", "neither a model nor a table"]),
    ],
)
def test_one_line_says_what_is_wrong(given_, words):
    with pytest.raises(LimbeckError) as error:
        bind(typed, given_, "typed")
    assert all(w in str(error.value) for w in words) and "\n" not in str(error.value)


def test_the_nearest_file_is_named(rows):
    with pytest.raises(LimbeckError, match="did you mean .*rows.jsonl"):
        bind(typed, {"prompts": rows.replace("rows.jsonl", "row.jsonl"), "teacher": "fake/echo"}, "typed")


def trains(prompts: Table, *, n: int = 1, **training):
    return prompts


def anything(prompts: Table, **rest):
    return prompts


def test_settings_of_train_are_checked_before_anything_runs(rows):
    bound = bind(trains, {"prompts": rows, "max_steps": "20", "learning_rate": "1e-3"}, "trains")
    assert (bound["max_steps"], bound["learning_rate"]) == (20, 0.001)
    for given_, words in [
        ({"promts": rows}, "did you mean 'prompts'"),
        ({"max_step": "2"}, "did you mean 'max_steps'"),
        ({"nonsense": "2"}, "settings of train"),
        ({"prompts": rows, "max_steps": "few"}, "max_steps as a whole number"),
    ]:
        with pytest.raises(LimbeckError, match=words):
            bind(trains, given_, "trains")
    assert bind(anything, {"prompts": rows, "nonsense": "2"}, "anything")["nonsense"] == 2


def test_seed_is_always_an_int(rows):
    assert bind(bare, {"rows": rows, "teacher": "t", "seed": "7"}, "bare")["seed"] == 7
    with pytest.raises(LimbeckError, match="whole number"):
        bind(bare, {"rows": rows, "teacher": "t", "seed": "new"}, "bare")


def test_a_table_is_cut_and_renamed(rows):
    table = Source(rows).open()
    first = [{"prompt": "q0", "n": 0}, {"prompt": "q1", "n": 1}]
    assert shaped(table, 2, {"question": "prompt"}).head(9) == first
    assert shaped(table, None, {}) is table and shaped(table, 9, {"else": "x"}) is table
    with pytest.raises(LimbeckError, match="already have a column 'n'"):
        shaped(table, None, {"question": "n"})


def test_words_are_pairs():
    assert pairs(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    for bad in (["word"], ["=x"], ["a=1", "a=2"]):
        with pytest.raises(LimbeckError):
            pairs(bad)


def test_schema_lists_the_command_line():
    listed = {entry["name"]: entry for entry in schema(typed)}
    assert listed["prompts"] == {"name": "prompts", "kind": "table", "required": True}
    assert listed["student"] == {"name": "student", "kind": "model", "required": False, "default": None}
    assert [listed[k]["kind"] for k in ("n", "rate", "fast", "writers", "ops", "kind")] == [
        "int", "float", "bool", "models", "list", "str",
    ]  # fmt: skip
    assert kind_of(int | None) == "int" and kind_of("nonsense") == "any"


@given(st.text())
def test_any_text_is_a_scalar(text):
    assert isinstance(scalar(text), str | int | float | bool | None)


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.none()))
def test_json_scalars_come_back(value):
    assert scalar(json.dumps(value)) == value


def test_settings_of_a_training_without_a_student_stop_before_anything_is_bought(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x"}\n')
    wanted = {"prompts": str(tmp_path / "p.jsonl"), "teacher": "fake/echo", "max_steps": "3"}
    with pytest.raises(LimbeckError, match="max_steps.*no student"):
        bind(registered()["label"].fn, wanted, "label")
