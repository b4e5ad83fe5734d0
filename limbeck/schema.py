"""Structured answers: JSON that is almost right is mended, then held against a schema."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from . import parse
from .errors import LimbeckError
from .parse import Reject


@dataclasses.dataclass(frozen=True)
class Fitting:
    """A parser: the JSON in a reply, if it fits `schema`, else a Reject that says where it does not.

    With `model`, a pydantic class, the class itself has the last word, and the value is what it makes of the JSON.
    """

    schema: Mapping[str, Any]
    model: type | None = None

    def __call__(self, text: str) -> Any:
        fault: Reject | None = None
        for read in (_whole, parse.json, _mended):
            found = read(text)
            if not isinstance(found, Reject):
                made = self._held_against(found)
                if not isinstance(made, Reject):
                    return made
                fault = fault or made
        return fault or Reject("no JSON")

    def _held_against(self, found: Any) -> Any:
        """What was read if it fits, else where it does not."""
        if self.model is not None:
            return _made(self.model, found)
        faults = sorted(_validator(json.dumps(self.schema, sort_keys=True)).iter_errors(found), key=str)
        if not faults:
            return found
        where = "/".join(map(str, faults[0].absolute_path)) or "the answer"
        return Reject(
            f"{where} does not fit the schema: {faults[0].validator} should be {faults[0].validator_value!r:.80}"
        )


def fitting(schema: Any) -> Callable[[str], Any]:
    """Makes the parser of a JSON schema or of a pydantic model. Raises LimbeckError for what is neither."""
    if isinstance(schema, type) and hasattr(schema, "model_json_schema"):
        return Fitting(schema.model_json_schema(), schema)
    if not isinstance(schema, Mapping):
        raise LimbeckError(f"schema wants a JSON schema or a pydantic model; it got a {type(schema).__name__}.")
    try:
        _validator(json.dumps(schema, sort_keys=True))
    except Exception as error:
        raise LimbeckError(f"the schema is none: {str(error).splitlines()[0]}") from None
    if lost := next(_lost_references(schema, schema), None):
        raise LimbeckError(f"the schema refers to {lost!r}, which is not in it; write it under '$defs'.")
    return Fitting(schema)


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    import jsonschema  # loaded by those who ask for structured answers alone

    kind = jsonschema.validators.validator_for(json.loads(schema), jsonschema.Draft202012Validator)
    kind.check_schema(json.loads(schema))
    return kind(json.loads(schema))


def _whole(text: str) -> Any:
    """The reply as it stands: a number, a word in quotes and null are JSON too."""
    try:
        return json.loads(text)
    except ValueError:
        return Reject("no JSON")


def _lost_references(schema: Any, at: Any) -> Iterator[str]:
    """The `$ref`s in a part of a schema that lead nowhere within it."""
    for value in at.values() if isinstance(at, Mapping) else at if isinstance(at, list) else ():
        yield from _lost_references(schema, value)
    if isinstance(at, Mapping) and isinstance(ref := at.get("$ref"), str):
        found: Any = schema if ref.startswith("#") else None
        for step in ref[1:].split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, Mapping) else None
        if found is None:
            yield ref


def _mended(text: str) -> Any:
    """The JSON that a reply nearly is: without its last brace, with single quotes, a comma too many, comments."""
    import json_repair

    if "{" not in text and "[" not in text:
        return Reject("no JSON")
    found = json_repair.loads(text[min(i for i in (text.find("{"), text.find("[")) if i >= 0) :])
    return found if found and isinstance(found, dict | list) else Reject("no JSON")


def _made(model: Any, found: Any) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate(found).model_dump(mode="json")
    except ValidationError as error:
        first = error.errors()[0]
        where = "/".join(map(str, first["loc"])) or "the answer"
        return Reject(f"{where} does not fit the schema: {first['msg']}")
