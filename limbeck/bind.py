"""Binds words from a command line or a config file to a function's parameters.

The annotation binds; without one, the value does: a known provider prefix makes a Model, an existing table file or
`hf://…` a Table, a YAML scalar a number, bool or null, and all else is text. `seed` is always an int.
"""

import collections.abc
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from . import models
from .errors import LimbeckError
from .models.base import Model
from .table import Table
from .train.hparams import Hparams

TABLE_FILES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_KINDS = {
    "table": f"a table: a {', '.join(TABLE_FILES[:-1])} or {TABLE_FILES[-1]} file, or hf://org/name",
    "model": "a model: provider/name, such as openai/NAME, hf/ORG/NAME or tiny/teacher",
    "models": "one or more models, with commas between them",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "values with commas between them",
    "any": "a value",
}
_NOT_GIVEN = inspect.Parameter.empty


@dataclasses.dataclass(frozen=True)
class Source:
    """A table that is named but not read yet: reading one needs an open run."""

    path: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def open(self) -> Table:
        """Reads the rows into the open run's store."""
        return Table.open(self.path, **self.options)


def shaped(table: Table, limit: int | None, rename: Mapping[str, str]) -> Table:
    """The table's first `limit` rows with its columns renamed {old: new}; as it is where neither says anything."""
    present = {old: new for old, new in rename.items() if old in table.columns}
    for old, new in present.items():
        if new in table.columns and new not in present:
            raise LimbeckError(f"--rename {old}={new}: the rows already have a column {new!r}; rename that one first.")
    if not present and (limit is None or limit >= len(table)):
        return table
    rows = ({present.get(k, k): v for k, v in row.items()} for row in islice(table, limit))
    return Table.from_rows(rows, name=table.name.rpartition("-")[0] or "rows")


def pairs(words: list[str]) -> dict[str, str]:
    """Splits `key=value` words; the value may hold anything, `=` too."""
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise LimbeckError(f"arguments are written name=value; {word!r} is not.")
        if key in given:
            raise LimbeckError(f"{key} is given twice: {given[key]!r} and {value!r}; give it once.")
        given[key] = value
    return given


def bind(fn: Callable, given: Mapping[str, Any], who: str) -> dict[str, Any]:
    """Returns {parameter: value} for `fn`; tables stay a Source. Raises LimbeckError for a name, value or lack.

    `given` maps a parameter, or `parameter.option` for an option of its model or table, to text or YAML data.
    """
    parameters = inspect.signature(fn).parameters
    annotations = _annotations(fn)
    options: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    for key, value in given.items():
        name, dot, option = key.partition(".")
        _known(name, parameters, who)
        if dot:
            options.setdefault(name, {})[option] = value
        else:
            plain[name] = value
    bound = {}
    for name, value in plain.items():
        annotation = int if name == "seed" else annotations.get(name, _NOT_GIVEN)
        bound[name] = _bound(f"{who}: {name}", annotation, value, options.pop(name, {}))
    if _rest(parameters) == "training":  # a wrong setting stops here, before anything is bought
        settings = {k: v for k, v in bound.items() if k not in parameters}
        Hparams.of(settings)
        if settings and "student" in parameters and bound.get("student", parameters["student"].default) is None:
            raise LimbeckError(
                f"{who}: {', '.join(settings)} would set a training, and there is no student; give student=…."
            )
    for name in options:
        raise LimbeckError(f"{who}: {name}.{next(iter(options[name]))} is an option of {name}, which is not given.")
    for name, parameter in parameters.items():
        fixed = parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if fixed and parameter.default is _NOT_GIVEN and name not in bound:
            kind = _KINDS[kind_of(int if name == "seed" else annotations.get(name, _NOT_GIVEN))]
            raise LimbeckError(f"{who} wants {name}, {kind}; give {name}=….")
    return bound


def schema(fn: Callable) -> list[dict[str, Any]]:
    """Lists a function's parameters as {name, kind, required, default}: its command line, in data."""
    annotations = _annotations(fn)
    listed = []
    for name, p in inspect.signature(fn).parameters.items():
        if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
            continue
        required = p.default is _NOT_GIVEN
        entry = {"name": name, "kind": kind_of(annotations.get(name, _NOT_GIVEN)), "required": required}
        if not required:
            plain = p.default is None or isinstance(p.default, bool | int | float | str)
            entry["default"] = p.default if plain else str(p.default)
        listed.append(entry)
    return listed


def kind_of(annotation: Any) -> str:
    """Names what an annotation takes: table model models int float bool str list any."""
    for kind in map(_kind, _alternatives(annotation)):
        if kind != "any":
            return kind
    return "any"


def _kind(annotation: Any) -> str:
    if isinstance(annotation, type):
        for base, kind in ((Table, "table"), (Model, "model"), (bool, "bool"), (int, "int"), (float, "float")):
            if issubclass(annotation, base):
                return kind
        if issubclass(annotation, str | Path):
            return "str"
    if typing.get_origin(annotation) is typing.Literal:
        return "str"
    origin = typing.get_origin(annotation) or annotation
    if origin in (list, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Iterable):
        inner = typing.get_args(annotation)[:1]
        return "models" if inner and kind_of(inner[0]) == "model" else "list"
    return "any"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _annotations(fn: Callable) -> dict[str, Any]:
    """A function's annotations as types. One that cannot be resolved counts as absent: then the value binds."""
    target = inspect.unwrap(fn)
    target = getattr(target, "func", target)
    try:
        return typing.get_type_hints(target)
    except Exception:  # a forward reference to something that was never imported, or not even an expression
        raw = getattr(target, "__annotations__", {})
        return {k: v for k, v in raw.items() if not isinstance(v, str)}


def _rest(parameters: Mapping[str, inspect.Parameter]) -> str | None:
    """The name of the parameter that takes all other keywords; `training` means the settings of train."""
    return next((p.name for p in parameters.values() if p.kind is p.VAR_KEYWORD), None)


def _known(name: str, parameters: Mapping[str, inspect.Parameter], who: str) -> None:
    rest = _rest(parameters)
    names = [p.name for p in parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    settings = [f.name for f in dataclasses.fields(Hparams)] if rest == "training" else []
    if name in names or name in settings or (rest and rest != "training"):
        return
    near = get_close_matches(name, [*names, *settings], 1)
    hint = (
        f"did you mean {near[0]!r}?"
        if near
        else f"it takes {', '.join(names)}{' and settings of train' if rest else ''}."
    )
    raise LimbeckError(f"{who} takes no {name!r}; {hint}")


def _bound(where: str, annotation: Any, value: Any, options: dict[str, Any]) -> Any:
    alternatives = _alternatives(annotation)
    kinds = [k for k in map(_kind, alternatives) if k != "any"]
    if value is None or (isinstance(value, str) and value in ("null", "None", "~") and type(None) in alternatives):
        if annotation is _NOT_GIVEN or type(None) in alternatives:
            return None
        raise LimbeckError(f"{where} is null; it takes {_KINDS[kinds[0] if kinds else 'any']}.")
    kind = _fitting(kinds, value)
    if options and kind not in ("table", "model", "models"):
        raise LimbeckError(f"{where} has the option {next(iter(options))!r}, but it is neither a model nor a table.")
    if kind == "table":
        return _source(where, value, options)
    if kind == "model":
        return _model(where, value, options)
    if kind == "models":
        return [_model(where, one, options) for one in _items(value)]
    if kind == "list":
        return _list(where, annotation, value)
    if kind == "any":
        return scalar(value) if isinstance(value, str) else value
    made = _plain(kind, value)
    if made is None:
        raise LimbeckError(f"{where} is {value!r}; it takes {_KINDS[kind]}.")
    choices = [c for a in alternatives if typing.get_origin(a) is typing.Literal for c in typing.get_args(a)]
    if choices and made not in choices:
        near = get_close_matches(str(made), map(str, choices), 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise LimbeckError(f"{where} is {made!r}; it takes one of {', '.join(map(repr, choices))}{hint}")
    if kind == "str" and any(isinstance(a, type) and issubclass(a, Path) for a in alternatives):
        return Path(made)
    return made


def _fitting(kinds: list[str], value: Any) -> str:
    """Which of the annotation's kinds takes the value; without any, what the value itself looks like."""
    if not kinds:
        found = next((k for k in ("model", "models", "table") if _takes(k, value)), "any")
        return "any" if found == "table" and not (value.startswith("hf://") or Path(value).is_file()) else found
    by_choice = sorted(kinds, key=lambda k: k == "str")  # any text is a str, so that one comes last
    return next((k for k in by_choice if _takes(k, value)), kinds[0])


def _takes(kind: str, value: Any) -> bool:
    text = value if isinstance(value, str) else ""
    if kind == "model":
        return models.is_model(text) and "," not in text
    if kind == "models":
        return bool(items := _items(value)) and all(isinstance(i, str) and models.is_model(i) for i in items)
    if kind == "table":
        return text.startswith("hf://") or _is_table_file(text)
    if kind == "list":
        return isinstance(value, list | tuple) or "," in text
    return kind == "str" or _plain(kind, value) is not None


def _plain(kind: str, value: Any) -> Any:
    """The value as int, float, bool or str; None where it is not one."""
    if kind == "str":
        return value if isinstance(value, str) else str(value)
    read = scalar(value) if isinstance(value, str) else value
    if kind == "bool":
        words = {"yes": True, "on": True, "no": False, "off": False}
        return read if isinstance(read, bool) else words.get(str(value).lower())
    if isinstance(read, bool) or not isinstance(read, int | float):
        return None
    if kind == "int":
        return int(read) if float(read).is_integer() else None
    return float(read)


def scalar(text: str) -> Any:
    """Reads text as YAML 1.2 does a scalar: a number, true, false or null, else the text itself."""
    if text in ("null", "~", ""):
        return None if text else ""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if text[0] in "+-.0123456789" and "_" not in text:
        for read in (int, float):
            try:
                return read(text)
            except ValueError:
                continue
    return text


def _is_table_file(text: str) -> bool:
    return text.removesuffix(".gz").endswith(TABLE_FILES)


def _source(where: str, value: Any, options: dict[str, Any]) -> Source:
    if not isinstance(value, str):
        raise LimbeckError(f"{where} is {value!r}; it takes {_KINDS['table']}.")
    if unknown := [o for o in options if o != "split"]:
        raise LimbeckError(f"{where} has the option {unknown[0]!r}; a table takes `split`.")
    if not value.startswith("hf://"):
        if models.is_model(value) and not Path(value).exists():
            raise LimbeckError(f"{where} is the model {value!r}; it takes {_KINDS['table']}.")
        if not Path(value).is_file():
            near = get_close_matches(Path(value).name, _neighbours(Path(value).parent), 1)
            hint = f"did you mean {Path(value).parent / near[0]}?" if near else f"it takes {_KINDS['table']}."
            raise LimbeckError(f"{where}: there is no file {value}; {hint}")
        if not _is_table_file(value):
            raise LimbeckError(f"{where} is {value}; limbeck reads {', '.join(TABLE_FILES)} and hf://.")
    return Source(value, {k: str(v) for k, v in options.items()})


def _neighbours(folder: Path) -> Iterator[str]:
    return (f.name for f in folder.iterdir() if f.is_file()) if folder.is_dir() else iter(())


def _model(where: str, value: Any, options: dict[str, Any]) -> Model:
    if not isinstance(value, str):
        raise LimbeckError(f"{where} is {value!r}; it takes {_KINDS['model']}.")
    read = {k: scalar(v) if isinstance(v, str) else v for k, v in options.items()}
    try:
        return models.get(value.strip(), **read)
    except LimbeckError as error:
        raise type(error)(f"{where}: {error}") from None


def _items(value: Any) -> list[Any]:
    if isinstance(value, str):
        return [v.strip() for v in value.removeprefix("[").removesuffix("]").split(",") if v.strip()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _list(where: str, annotation: Any, value: Any) -> Any:
    typed = next(a for a in _alternatives(annotation) if _kind(a) == "list")
    inner = next(iter(typing.get_args(typed)), _NOT_GIVEN)
    read = [_bound(where, inner, one, {}) for one in _items(value)]
    return tuple(read) if (typing.get_origin(typed) or typed) is tuple else read
