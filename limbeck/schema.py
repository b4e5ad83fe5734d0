"""Structured answers: JSON that is almost right is mended, then held against a schema."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

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
        found = parse.json(text)
        if isinstance(found, Reject) or (self._wants_object and not isinstance(found, dict)):
            found = _mended(text)
        if isinstance(found, Reject):
            return found
        if self.model is not None:
            return _made(self.model, found)
        fault = next(
            iter(sorted(_validator(json.dumps(self.schema, sort_keys=True)).iter_errors(found), key=str)), None
        )
        if fault is None:
            return found
        where = "/".join(map(str, fault.absolute_path)) or "the answer"
        return Reject(f"{where} does not fit the schema: {fault.validator} should be {fault.validator_value!r:.80}")

    @property
    def _wants_object(self) -> bool:
        return self.schema.get("type") == "object"


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
    return Fitting(schema)


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    import jsonschema  # loaded by those who ask for structured answers alone

    kind = jsonschema.validators.validator_for(json.loads(schema), jsonschema.Draft202012Validator)
    kind.check_schema(json.loads(schema))
    return kind(json.loads(schema))


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
