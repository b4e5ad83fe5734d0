"""Structured answers: almost-JSON is mended, what does not fit is a reject that says where."""

import pytest
from pydantic import BaseModel, Field

from limbeck.errors import LimbeckError
from limbeck.fingerprint import fingerprint
from limbeck.parse import Reject
from limbeck.schema import fitting

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
}


class Person(BaseModel):
    name: str
    age: int = Field(ge=0)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Ada", "age": 36}',
        'Here it is:\n```json\n{"name": "Ada", "age": 36}\n```',
        '{"name": "Ada", "age": 36,}',
        "{'name': 'Ada', 'age': 36}",
        '{"name": "Ada", "age": 36',
        '{name: "Ada", age: 36} // done',
    ],
)
@pytest.mark.parametrize("schema", [PERSON, Person])
def test_what_is_almost_json_is_mended(text, schema):
    assert fitting(schema)(text) == {"name": "Ada", "age": 36}


@pytest.mark.parametrize("schema", [PERSON, Person])
def test_what_does_not_fit_says_where(schema):
    found = fitting(schema)('{"name": "Ada", "age": -1}')
    assert isinstance(found, Reject) and found.reason.startswith("age does not fit the schema")
    missing = fitting(schema)('{"name": "Ada"}')
    assert isinstance(missing, Reject) and "age" in missing.reason
    assert isinstance(fitting(schema)("I would rather not."), Reject)
    assert isinstance(fitting(schema)(""), Reject)


def test_a_pydantic_model_has_the_last_word():
    assert fitting(Person)('{"name": "Ada", "age": "36"}') == {"name": "Ada", "age": 36}
    assert isinstance(fitting(PERSON)('{"name": "Ada", "age": "36"}'), Reject)


def test_what_is_no_schema_is_an_error_before_anything_is_asked():
    with pytest.raises(LimbeckError, match="schema"):
        fitting("person")
    with pytest.raises(LimbeckError, match="schema is none"):
        fitting({"type": "persn"})


def test_parsers_of_equal_schemas_have_equal_fingerprints():
    assert fingerprint(fitting(dict(PERSON))) == fingerprint(fitting(dict(PERSON)))
    assert fingerprint(fitting(PERSON)) != fingerprint(fitting(Person))


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, "5", 5),
        ({"type": "string"}, '"abc"', "abc"),
        ({"type": "boolean"}, "true", True),
        ({"enum": ["x", "y"]}, '"x"', "x"),
        ({"anyOf": [{"type": "object"}, {"type": "null"}]}, "null", None),
        ({"type": "array", "items": {"type": "integer"}}, "Sure: [1, 2, 3]", [1, 2, 3]),
    ],
)
def test_an_answer_need_not_be_an_object(schema, text, value):
    assert fitting(schema)(text) == value


@pytest.mark.parametrize("ref", ["#/definitions/none", "http://elsewhere.example/schema.json"])
def test_a_reference_that_leads_nowhere_is_an_error_before_anything_is_asked(ref):
    with pytest.raises(LimbeckError, match="which is not in it"):
        fitting({"type": "object", "properties": {"a": {"$ref": ref}}})
    fitting({"$defs": {"a/b": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/a~1b"}}})
