"""Answers requests with a sequence classifier: the reply is a label, and its log-probability that of the label."""

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LimbeckError, Refused
from . import chat
from .base import Reply, Request
from .batching import Asked, threads
from .generate import Picking, Sampling, chances

if TYPE_CHECKING:
    from .hf import HF

_READ = 8192  # tokens, padding included, that are read at a time


def serve(model: "HF", asked: Iterable[Asked], more: Callable[[], list[Asked]]) -> None:
    """Answers `asked` and what `more` brings meanwhile, until nothing waits; tells all of them what goes wrong."""
    waiting = list(asked)
    try:
        with threads(model.weights()):
            while waiting and not model.leaving:
                _answer(model, waiting)
                waiting = more()
    except BaseException as e:  # whoever waits must hear of it
        for _, _, future in waiting:
            with contextlib.suppress(Exception):  # it has its answer
                future.set_exception(e)


def _answer(model: "HF", asked: list[Asked]) -> None:
    rows = []
    for request, key, future in asked:
        if not future.set_running_or_notify_cancel():
            continue
        try:
            rows.append((_ids(model, request), request, key, future))
        except Refused as refusal:
            future.set_exception(refusal)
    rows.sort(key=lambda row: len(row[0]))  # alike lengths together: less padding
    pads = model.weights().config.pad_token_id is not None
    while rows:
        size = max(1, _READ // len(rows[-1][0])) if pads else 1
        rows, some = rows[:-size], rows[-size:]
        replies = _replies(model, [ids for ids, *_ in some], [r for _, r, _, _ in some], [k for _, _, k, _ in some])
        for (*_, future), reply in zip(some, replies, strict=True):
            future.set_result(reply)


def _replies(model: "HF", prompts: list[list[int]], requests: list[Request], keys: list[str]) -> list[Reply]:
    weights: Any = model.weights()
    labels = weights.config.id2label
    if len(labels) < 2:
        raise LimbeckError(
            f"{model.name} is asked for a label, and has one output, which is a score; call its weights(), "
            f"or ask a classifier of two labels or more."
        )
    hows = [Sampling(1, r.temperature or 0.0, 1.0 if r.top_p is None else r.top_p, r.logprobs or 0) for r in requests]
    picking = Picking(hows, weights.device)
    drawn = [next(chances(int(key[:15] or "0", 16))) for key in keys]
    with torch.no_grad():
        ids_bt, mask_bt = _pad_right(prompts, weights.config.pad_token_id or 0)
        out = weights(input_ids=ids_bt.to(weights.device), attention_mask=mask_bt.to(weights.device))
        picked = picking.pick(out.logits.float(), drawn)
    replies = []
    for ids, how, label, logp, top in zip(prompts, hows, *picked, strict=True):
        entry: dict[str, Any] = {"token": labels[label], "logprob": logp, "id": label}
        if how.top:
            entry["top"] = [{"token": labels[i], "logprob": p, "id": i} for i, p in top[: how.top]]
        cost = model.price.of(len(ids), 0) if model.price else 0.0
        replies.append(Reply(text=labels[label], prompt_tokens=len(ids), cost=cost, logprobs=[entry]))
    return replies


def _ids(model: "HF", request: Request) -> list[int]:
    ids = chat.encode_last(model.tokenizer, request, model.name)
    most = min(model.context or len(ids), model.tokenizer.model_max_length)  # RoBERTa's positions begin at 2
    if len(ids) > most:
        raise Refused(f"{model.name}: the text has {len(ids)} tokens, and the model reads at most {most}")
    return ids


def _pad_right(rows: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes (ids_bt, mask_bt). The id of padding matters: some models find a row's last token by it."""
    width = max(map(len, rows))
    ids_bt = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask_bt = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids_bt, mask_bt
