"""ask: rows × models × draws → replies → columns. Renders first, buys what the ledger lacks, then reads the ledger."""

import dataclasses
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import models, parse
from .. import prompt as prompts
from ..engine import Buying, Job, wait
from ..errors import LimbeckError
from ..fingerprint import canonical, data_half, digest
from ..ledger import KEY_SCHEMA
from ..models.base import Model, Reply, Request
from ..op import Made, row_stage
from ..parse import Many, Reject
from ..run import Run, current
from ..table import Row, Table
from .changes import stop_if_changed
from .shape import Column, check_slots

_CHUNK = 2000  # keys looked up at a time
META = ("reasoning", "finish", "model", "usage", "logprobs", "tool_calls")


def ask(
    rows: Table,
    who: "Model | str | Sequence[Model | str]",
    prompt: "str | prompts.Prompt | Column",
    *,
    n: int = 1,
    into: str | None = None,
    system: str | None = None,
    shots: "Table | Sequence[Row] | None" = None,
    schema: Any = None,
    parse: "Callable[[str], Any] | str | None" = None,
    temperature: "float | Column | None" = None,
    top_p: "float | Column | None" = None,
    max_tokens: "int | Column | None" = None,
    stop: "Sequence[str] | Column | None" = None,
    logprobs: int | None = None,
    tools: Any = None,
    extra: dict[str, Any] | None = None,
    meta: Sequence[str] = (),
    salt: int | str = 0,
    shard: tuple[int, int] | None = None,
) -> Table:
    """Asks one or several models about each row, `n` times, and adds what they answered as columns.

    `prompt` is a prompt's name, a template with `{slots}`, a Prompt, or `Column` of a column that holds chat messages
    or prompt names. `into` names the new column (default: the prompt's `output`, else `response`); to replace one, name
    it. A reply that does not parse becomes a reject with its reason; `parse.Many` becomes several rows. None is not
    sent and not part of the key. `shots` are rows of prompt and response, sent as earlier turns. `meta` adds
    `<into>_reasoning`, `_finish`, `_model`, `_usage`, `_logprobs`, `_tool_calls`; several writers add `writer`; a
    truncated reply is marked `<into>_finish` = "length". `salt` draws afresh. `shard=(offset, stride)` asks about every
    stride-th row from offset.

    Nothing is bought twice: a call's key is the model's digest, the request, `salt` and the draw (how many earlier rows
    rendered the same words, index within n). Raises BudgetError, Incomplete, Interrupted; the replies are kept.
    """
    run = current("ask")
    if not isinstance(rows, Table):
        raise LimbeckError(
            f"ask wants a Table first; it got a {type(rows).__name__}: make one with Table.from_rows(…)."
        )
    asking = _Asking(rows, who, prompt, n, into, system, shots, schema, parse, meta, salt, shard)
    asking.sampling = {
        "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": stop, "logprobs": logprobs,
        "tools": tools, "extra": extra,
    }  # fmt: skip
    asking.check(run)
    site = run.site("ask")
    for model in asking.models:
        run.models[id(model)] = model
    return asking.stage(run, site) if run.plan is None else run.plan.ask(asking, run, site)


class _Asking:
    """One ask, settled: who is asked what about which rows, and how a reply becomes columns."""

    sampling: dict[str, Any]

    def __init__(self, rows, who, prompt, n, into, system, shots, schema, parse_, meta, salt, shard):  # type: ignore[no-untyped-def]
        listed = who if isinstance(who, list | tuple) else [who]
        self.models: list[Model] = [models.get(w) if isinstance(w, str) else w for w in listed]
        self.rows, self.n, self.system, self.meta, self.salt, self.shard = rows, n, system, tuple(meta), salt, shard
        self.prompt = prompt if isinstance(prompt, Column) else prompts.get(prompt, current().search)
        self.loaded: dict[str, prompts.Prompt] = {}  # prompts that rows name in a column
        self.label = prompt.name if isinstance(prompt, Column) else self.prompt.name
        self.shots = [{k: s.get(k) for k in ("prompt", "response")} for s in shots] if shots is not None else []
        self.schema = schema.model_json_schema() if hasattr(schema, "model_json_schema") else schema
        self.parser = parse.get(parse_) if isinstance(parse_, str) else parse_
        output = None if isinstance(self.prompt, Column) else self.prompt.output
        self.outputs: list[str] | None = list(output) if into is None and isinstance(output, list | tuple) else None
        self.into: str = into or (output if isinstance(output, str) else None) or "response"
        self.explicit = into is not None

    def check(self, run: Run) -> None:
        who = f"ask with prompt {self.label!r}"
        if self.n < 1:
            raise LimbeckError(f"{who} wants n of at least 1; it got {self.n}.")
        if not self.models:
            raise LimbeckError(f"{who} wants a model; `who` is an empty list.")
        if unknown := set(self.meta) - set(META):
            raise LimbeckError(f"{who} got meta {sorted(unknown)}; there are {', '.join(META)}.")
        if self.shard is not None and not (0 <= self.shard[0] < self.shard[1]):
            raise LimbeckError(f"{who} wants shard=(offset, stride) with 0 <= offset < stride; it got {self.shard}.")
        columns = [v.name for v in self.sampling.values() if isinstance(v, Column)]
        if isinstance(self.prompt, Column):
            columns.append(self.prompt.name)
        else:
            check_slots(self.prompt, self.rows)
        self.rows.need(who, *columns)
        new = self.outputs or [self.into]
        if not self.explicit and (taken := [c for c in new if c in self.rows.columns]):
            raise LimbeckError(
                f"{who} would replace the column {taken[0]!r}; say into={taken[0]!r} if it should, or another name."
            )
        for model in self.models:
            if not isinstance(model, Model):
                raise LimbeckError(f'{who} wants a model or "provider/name"; it got a {type(model).__name__}.')
            wants = {"chat"} | ({"logprobs"} if self.sampling["logprobs"] is not None else set())
            if missing := wants - model.can:
                raise LimbeckError(f"{who} wants {sorted(missing)}; {model.name!r} can {sorted(model.can)}.")

    def parameters(self) -> dict[str, Any]:
        return {
            "models": self.models, "names": [m.name for m in self.models] if len(self.models) > 1 else None,
            "prompt": self._prompt_digests(), "n": self.n, "into": self.outputs or self.into,
            "system": self.system, "shots": self.shots, "schema": self.schema, "parse": self.parser, "meta": self.meta,
            "salt": self.salt, "shard": self.shard, "sampling": self.sampling,
        }  # fmt: skip

    def _prompt_digests(self) -> list[str]:
        """What is said to the model, whatever the prompts are called: of all that rows name, where a column does."""
        if not isinstance(self.prompt, Column):
            return [self.prompt.digest]
        named = {row.get(self.prompt.name) for row in self.rows.tracked() if isinstance(row.get(self.prompt.name), str)}
        return [self.prompt.name, *(self._named(name).digest for name in sorted(named))]

    # -- from row to request
    def _prompt_of(self, row: Row) -> "prompts.Prompt | list":
        if not isinstance(self.prompt, Column):
            return self.prompt
        value = row.get(self.prompt.name)
        if isinstance(value, list):
            return value
        return self._named(value)

    def _named(self, value: Any) -> prompts.Prompt:
        if not isinstance(value, str) or not value or re.search(r"[\s{}]", value):
            raise LimbeckError(
                f"column {self.label!r} should hold chat messages or the name of a prompt; "
                f"a row has {str(value)[:60]!r}."
            )
        if value not in self.loaded:
            self.loaded[value] = prompts.get(value, current().search)
        return self.loaded[value]

    def request(self, row: Row) -> Request:
        """What is sent about one row."""
        prompt = self._prompt_of(row)
        said = prompt if isinstance(prompt, list) else prompt.render(row)
        messages = [dict(m) for m in said] if isinstance(said, list) else [{"role": "user", "content": said}]
        if self.system is not None:
            messages = [m for m in messages if m["role"] != "system"]
            messages.insert(0, {"role": "system", "content": self.system})
        system = [messages.pop(0)] if messages and messages[0]["role"] == "system" else []
        shown = [
            turn
            for shot in self.shots
            for turn in (
                {"role": "user", "content": str(shot["prompt"])},
                {"role": "assistant", "content": str(shot["response"])},
            )
        ]
        settings = {k: row.get(v.name) if isinstance(v, Column) else v for k, v in self.sampling.items()}
        return Request(messages=[*system, *shown, *messages], schema=self.schema, **settings)

    def lacking(self, row: Row) -> str | None:
        """The column that the prompt takes and this row has nothing in: it is not asked about, it is rejected."""
        prompt = self._prompt_of(row)
        inputs = () if isinstance(prompt, list) else prompt.inputs
        return next((c for c in inputs if row.get(c) is None), None)

    def in_shard(self, index: int) -> bool:
        return self.shard is None or index % self.shard[1] == self.shard[0]

    def requests(self) -> Iterator[tuple[int, Row, Model, Request, str, str, int]]:
        """(index, row, model, request, body, words, occurrence) in input order: the render pass.

        Occurrences count over all rows, those of other shards too, so that shards together equal the whole.
        """
        seen: Counter[str] = Counter()
        for index, row in enumerate(self.rows.tracked()):
            if self.lacking(row):
                continue
            wanted = self.request(row)
            for model in self.models:
                request = wanted
                if wanted.max_tokens is None and model.limit is not None:
                    request = dataclasses.replace(wanted, max_tokens=model.limit)
                body = canonical(request.canonical()).decode()
                words = digest(model.digest, body)
                occurrence = seen[words]
                seen[words] += 1
                if self.in_shard(index):
                    yield index, row, model, request, body, words, occurrence

    def keys(self, words: str, occurrence: int) -> list[str]:
        fixed = (f"call {KEY_SCHEMA}", words, f"{type(self.salt).__name__} {self.salt}", str(occurrence))
        return [digest(*fixed, str(draw)) for draw in range(self.n)]

    # -- buying
    def missing(self, run: Run) -> tuple[bytearray, int]:
        """A mark per call, in order: does the ledger lack it? And how many it lacks."""
        marks, lacking = bytearray(), 0
        asked = (self.keys(words, o) for *_, words, o in self.requests())
        for chunk in _chunks(itertools.chain.from_iterable(asked), _CHUNK):
            have = run.ledger.have(chunk)
            for other in run.lenders():
                if lost := [k for k in chunk if k not in have]:
                    have |= run.ledger.borrow(other, lost)
            marks.extend(k not in have for k in chunk)
        lacking = sum(marks)
        return marks, lacking

    def jobs(self, marks: bytearray, site: str, endpoint: str | None = None) -> Iterator[Job]:
        """The calls that the ledger lacks, rendered again as they are needed."""
        digests, at = self.rows.row_digests, 0
        for index, _, model, request, body, words, occurrence in self.requests():
            wanted = marks[at : at + self.n]
            at += self.n
            if not any(wanted) or (endpoint is not None and model.endpoint != endpoint):
                continue
            row = digests[16 * index : 16 * index + 16].hex()
            for draw, key in enumerate(self.keys(words, occurrence)):
                if wanted[draw]:
                    yield Job(model, request, key, words, body, occurrence, draw, str(self.salt), site, row)

    def buy(self, run: Run, site: str) -> None:
        """Buys what the ledger lacks, or stops before it: changed prompts, budget, an endpoint that stays away."""
        marks, lacking = self.missing(run)
        while lacking and run.leader:  # another process buys for this one
            time.sleep(0.2)
            marks, lacking = self.missing(run)
        names = [m.name for m in self.models]
        said = self.loaded.values() if isinstance(self.prompt, Column) else [self.prompt]
        prompts_said = {p.name: p.digest for p in said}
        run.event(
            "ask", site=site, prompt=self.label, prompts=prompts_said, models=names, calls=len(marks), to_buy=lacking
        )
        if not lacking:
            return
        stop_if_changed(self, run, marks, site)
        if lacking < len(marks):
            run.say(f"{self.label}: {len(marks) - lacking:,} calls are replayed, {lacking:,} are to buy")
        first = next(self.jobs(marks, site))
        for model in self.models:
            run.budget.worst(model, first.request)  # a cap on what has no bound is an error before the first call
        with run.bar(self.label, lacking, f"{', '.join(names)[:40]}") as bar:
            buying = Buying(run.ledger, run.budget, bar)
            widths: dict[str, int] = {}
            for model in self.models:
                widths[model.endpoint] = max(widths.get(model.endpoint, 1), model.max_concurrency or 64)
            lanes = {e: (width, self.jobs(marks, site, e)) for e, width in widths.items()}
            try:
                wait(buying.all(lanes), buying.interrupt)
            finally:
                run.ledger.flush()
                run.event("bought", site=site, calls=buying.bought, money=bar.money, retries=dict(buying.retries),
                          failed=dict(buying.failed), spent=run.ledger.spent())  # fmt: skip

    # -- from reply to columns
    def stage(self, run: Run, site: str) -> Table:
        """Buys what is missing and stores the answers: the whole of ask, where nothing is only planned."""
        return row_stage("ask", self.rows, self.parameters(), lambda it: self.answers(run, site, it), code=data_half())

    def answers(self, run: Run, site: str, rows: Iterator[tuple[int, Row]]) -> Iterator[Made]:
        self.buy(run, site)
        yield from self.read(run, rows)

    def read(self, run: Run, rows: Iterator[tuple[int, Row]]) -> Iterator[Made]:
        """Turns the replies that the ledger holds into rows, in order; calls it does not hold are left out."""
        pending: list[tuple[int, Row, Model | None, list[str]]] = []
        asked = itertools.groupby(self.requests(), key=lambda request: request[0])
        at, group = next(asked, (None, iter(())))
        for index, row in rows:
            if at == index:
                for _, _, model, _, _, words, occurrence in group:
                    pending.append((index, row, model, self.keys(words, occurrence)))
                at, group = next(asked, (None, iter(())))
            elif self.in_shard(index):
                pending.append((index, row, None, []))
            if len(pending) * self.n >= _CHUNK:
                yield from self._read(run, pending)
                pending = []
        yield from self._read(run, pending)

    def _read(self, run: Run, pending: list[tuple[int, Row, Model | None, list[str]]]) -> Iterator[Made]:
        held = run.ledger.replies([k for *_, keys in pending for k in keys])
        for index, row, model, keys in pending:
            if model is None:
                yield Made(index, Reject(f"no {self.lacking(row)}"))
                continue
            for key in (k for k in keys if k in held):
                data, refused = held[key]
                if data is None:
                    yield Made(index, Reject(f"refused: {refused}"[:200]), (key,))
                    continue
                reply = Reply.from_json(data)
                for made in self._columns(row, model, reply):
                    yield Made(index, made, (key,), reply.text if isinstance(made, Reject) else None)

    def _parser(self, row: Row) -> Callable[[str], Any] | None:
        if self.parser is not None:
            return self.parser
        prompt = self._prompt_of(row)
        own = None if isinstance(prompt, list) else prompt.parser
        return own or (parse.get("json") if self.schema is not None else None)

    def _columns(self, row: Row, model: Model, reply: Reply) -> Iterator[Row | Reject]:
        parser = self._parser(row)
        value = parser(reply.text) if parser is not None else reply.text
        for one in value.values if isinstance(value, Many) else [value]:
            yield one if isinstance(one, Reject) else self._row(row, model, reply, one)

    def _row(self, row: Row, model: Model, reply: Reply, value: Any) -> Row | Reject:
        outputs = self.outputs
        if outputs is None and isinstance(self.prompt, Column) and not self.explicit:
            named = self._prompt_of(row)  # a prompt that the row names brings its own output
            outputs = [named.output] if not isinstance(named, list) and isinstance(named.output, str) else None
            value = {outputs[0]: value} if outputs else value
        if outputs is None:
            new = {self.into: value}
        elif isinstance(value, dict):
            if missing := [c for c in outputs if c not in value]:
                return Reject(f"no {missing[0]!r} in the reply")
            new = {c: value[c] for c in outputs}
        elif len(outputs) == 1:
            new = {outputs[0]: value}
        else:
            return Reject(f"one value where {len(outputs)} were asked for")
        stem = (outputs or [self.into])[0]
        if len(self.models) > 1:
            new["writer"] = model.name
        marked = reply.finish == "length" or "finish" in self.meta
        if marked or f"{stem}_finish" in row:  # an earlier reply's mark does not outlive it
            new[f"{stem}_finish"] = reply.finish if marked else None
        usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
        extras = {
            "reasoning": reply.reasoning, "model": reply.served_model or model.name, "usage": usage,
            "logprobs": reply.logprobs, "tool_calls": reply.tool_calls,
        }  # fmt: skip
        new |= {f"{stem}_{m}": json.loads(json.dumps(extras[m])) for m in self.meta if m != "finish"}
        return {**row, **new}


def _chunks(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk
