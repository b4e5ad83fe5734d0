"""Prompts are data: a Markdown file each, with a short head that says what goes in, what comes out and how to read it.

    ---
    paper: "2304.12244"
    inputs: [prompt]
    output: prompt              # or a list of columns; `response` where nothing is said
    parser: {tags: {names: task}}   # or just a name: lines
    system: You are terse.
    ---
    Rewrite the task below …  {prompt}

A slot is `{identifier}` and nothing else: braces of JSON and LaTeX are text. Around an identifier two braces stand for
one, as in Python's str.format: `{{name}}` is the text `{name}`, `{{{name}}}` is a slot in braces. What a row puts into
a slot is never looked at again.
"""

import dataclasses
import difflib
import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck import parse
from limbeck.errors import LimbeckError
from limbeck.fingerprint import digest, fingerprint, plain

PROMPTS = Path(__file__).parent / "prompts"
SLOT = re.compile(r"(\{+)([^\W\d]\w*)(\}+)")
HEAD = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*\n(.*)\Z", re.M | re.S)
KEYS = ("paper", "inputs", "output", "parser", "system")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """What is said to a model, with the columns it takes, those it gives and the parser between reply and columns."""

    name: str
    text: str
    inputs: tuple[str, ...]
    output: str | tuple[str, ...] = "response"
    parser: Callable[[str], Any] | None = None
    system: str | None = None
    paper: str | None = None

    @functools.cached_property
    def digest(self) -> str:
        """Names what the prompt says and how its reply is read, whatever it is called and wherever it lies."""
        if isinstance(self.parser, parse.Parser):  # by name, so that a prompt keeps its digest when parsers are mended
            parser = json.dumps([self.parser.name, self.parser.args])
        else:
            parser = fingerprint(self.parser, f"the parser of prompt {self.name}")
        return digest(self.text, json.dumps([self.system, self.output]), parser)

    def render(self, row: Mapping[str, Any]) -> str | list[dict[str, str]]:
        """Fills the slots from `row`: the user's text, or two messages where the prompt has a system text.

        Text goes in as it is, everything else as JSON. An absent or empty (None) column is an error that names it.
        """
        text = _fill(self.text, row, self.name)
        if self.system is None:
            return text
        system = _fill(self.system, row, self.name)
        return [{"role": "system", "content": system}, {"role": "user", "content": text}]

    def check(self, columns: Sequence[str]) -> None:
        """Raises, before anything is sent, if the rows lack a column that this prompt takes."""
        for slot in self.inputs:
            if slot not in columns:
                raise _unknown(self.name, slot, columns)


def get(prompt: "str | Prompt", search: Iterable[Path] = ()) -> Prompt:
    """Gives the Prompt for what a user may write: a Prompt, a name (neither space nor brace in it), or a template."""
    if isinstance(prompt, Prompt):
        return prompt
    if not isinstance(prompt, str):
        raise LimbeckError(f"a prompt is a name, a template or a Prompt; it is a {type(prompt).__name__}: {prompt!r}.")
    return load(prompt, search) if prompt and not re.search(r"[\s{}]", prompt) else inline(prompt)


def inline(template: str) -> Prompt:
    """Makes a prompt of a template such as `"Translate into French: {prompt}"`."""
    if not template.strip():
        raise LimbeckError("an empty prompt has nothing to say; give a template such as '{prompt}' or a prompt's name.")
    return Prompt(f"{template.strip().splitlines()[0][:40]!r}", template, slots(template))


def load(name: str, search: Iterable[Path] = ()) -> Prompt:
    """Reads and checks a prompt: a path that ends in .md, else `<name>.md` in a folder of `search`, else a built-in."""
    if name.endswith(".md"):
        path = next((p for p in (Path(name), *(folder / name for folder in search)) if p.is_file()), None)
        if path is None:
            raise LimbeckError(f"no prompt file {name!r}; give an existing .md file, or a name such as 'answer'.")
        return read(path.stem, path.read_text(encoding="utf-8"))
    for folder in (places := [*search, PROMPTS]):
        path = folder / f"{name}.md"
        if path.is_file():
            return read(name, path.read_text(encoding="utf-8"))
    near = difflib.get_close_matches(name, names(places), n=1, cutoff=0.4)
    ask = f"did you mean {near[0]!r}?" if near else "a template needs a slot such as {prompt}, or a space."
    raise LimbeckError(f"no prompt is called {name!r}; {ask}")


def names(folders: Iterable[Path] = (PROMPTS,)) -> list[str]:
    """Lists the prompts below `folders`, by default the built-in ones."""
    return sorted({f.relative_to(d).with_suffix("").as_posix() for d in folders for f in d.glob("**/*.md")})


def read(name: str, file: str) -> Prompt:
    """Makes a prompt of a file's text and checks it: known keys, an existing parser, inputs exactly the slots used."""
    parts = HEAD.match(file.replace("\r\n", "\n"))
    if not parts:
        raise LimbeckError(f"prompt {name!r} has no head; begin the file with '---', 'inputs: [prompt]', '---'.")
    head, text = _yaml(name, parts[1]), parts[2].strip()
    for key in head:
        if key not in KEYS:
            raise LimbeckError(f"prompt {name!r} has the key {key!r}{_near(key, KEYS)}; known are {', '.join(KEYS)}.")
    if not text:
        raise LimbeckError(f"prompt {name!r} says nothing; write its text below the second '---'.")
    system = None if head.get("system") is None else str(head["system"]).strip()
    used, inputs = slots(text + (system or "")), tuple(_list(head.get("inputs", [])))
    if set(used) != set(inputs):
        said = f"declares the inputs {', '.join(inputs) or 'none'} and uses the slots {', '.join(used) or 'none'}"
        raise LimbeckError(f"prompt {name!r} {said}; make them the same.")
    output = head.get("output", "response")
    output = output if isinstance(output, str) else tuple(_list(output))
    paper = None if head.get("paper") is None else str(head["paper"])
    return Prompt(name, text, inputs, output, _parser(name, head.get("parser"), output), system, paper)


def slots(text: str) -> tuple[str, ...]:
    """The columns a template takes, in order of appearance."""
    return tuple(dict.fromkeys(m[2] for m in SLOT.finditer(text) if len(m[1]) % 2))


def escape(text: str) -> str:
    """Doubles braces where they could be read as a slot: the template that renders to exactly `text`."""
    return SLOT.sub(lambda m: m[1] * 2 + m[2] + m[3] + "}" * min(len(m[1]), len(m[3])), text)


def _fill(text: str, row: Mapping[str, Any], name: str) -> str:
    def value(match: re.Match[str]) -> str:
        opened, slot, closed = len(match[1]), match[2], len(match[3])
        is_slot = opened % 2
        filled = _text(row, slot, name) if is_slot else slot
        closed -= is_slot
        closed -= min(opened // 2, closed // 2)
        return "{" * (opened // 2) + filled + "}" * closed

    return SLOT.sub(value, text)


def _text(row: Mapping[str, Any], slot: str, name: str) -> str:
    value = row.get(slot)
    if value is None:
        raise _unknown(name, slot, [c for c in row if not c.startswith("_") and row[c] is not None])
    return value if isinstance(value, str) else json.dumps(plain(value), ensure_ascii=False)


def _unknown(name: str, slot: str, columns: Sequence[str]) -> LimbeckError:
    has = ", ".join(columns) or "no columns"
    return LimbeckError(f"prompt {name} wants {{{slot}}}{_near(slot, columns)}; the rows have {has}.")


def _near(word: Any, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _list(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _yaml(name: str, head: str) -> dict[Any, Any]:
    import yaml  # only here: most runs read few prompts, and no import of limbeck should pay for it

    try:
        keys = yaml.safe_load(head) or {}
    except yaml.YAMLError as error:
        raise LimbeckError(f"prompt {name!r} has a head that is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(keys, dict):
        raise LimbeckError(f"prompt {name!r} has a head without keys; write e.g. 'inputs: [prompt]'.")
    return keys


def _parser(name: str, spec: Any, output: str | tuple[str, ...]) -> Callable[[str], Any] | None:
    """`lines`, or `{number: {low: 1, high: 5}}`. tags and json take the names they need from `output`."""
    if spec is None:
        return None
    kind, args = next(iter(spec.items())) if isinstance(spec, dict) and len(spec) == 1 else (spec, {})
    args = dict(args or {})
    if kind == "tags":
        args.setdefault("names", output if isinstance(output, str) else list(output))
    if kind == "json" and not isinstance(output, str):
        args.setdefault("require", list(output))
    try:
        return parse.get(str(kind), **args)
    except LimbeckError as error:
        raise LimbeckError(f"prompt {name!r}: {error}") from None
