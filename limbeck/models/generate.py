"""Writes continuations for a batch of token sequences with a causal language model of transformers.

Its own loop rather than `model.generate`, because a reply must not depend on the batch that it was made in: each row
draws from its own seed, nothing is inherited from the checkpoint's `generation_config`, and finished rows leave.
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache


@dataclasses.dataclass(frozen=True, slots=True)
class Sampling:
    """How to pick tokens. `temperature` 0 takes the likeliest token, and then `top_p` does nothing."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top: int = 0  # how many alternatives to report per token


@dataclasses.dataclass(slots=True)
class Written:
    """What was written for one row. The end token, where there is one, is part of it; stop strings are too."""

    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)  # natural log, of the model itself: T=1, top_p=1
    top: list[list[tuple[int, float]]] = dataclasses.field(default_factory=list)
    finish: str = "length"  # stop | length


@torch.no_grad()
def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    sampling: Sampling,
    ends: Collection[int],
    stopped: Callable[[list[int]], bool] | None = None,
) -> Iterator[tuple[int, Written]]:
    """Yields (row, Written) for each prompt (token ids, at least one), in the order in which the rows finish.

    A row ends at a token of `ends`, when `stopped(its ids so far)` says so, or after `max_tokens`. `seeds` are the
    rows' own: the same prompt, seed and sampling give the same tokens in any batch, up to rounding near a tie.
    """
    device = model.device
    ids_bt, mask_bt = pad_left(prompts, device)
    padded = not bool(mask_bt.all())
    takes = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {"use_cache": True} | ({"logits_to_keep": 1} if "logits_to_keep" in takes else {})
    position_bt = positions(mask_bt)
    uniform_bt = _uniform(seeds, sampling, device)
    alive = list(range(len(prompts)))  # the row behind each place of the batch
    done = [False] * len(prompts)
    written = [Written() for _ in prompts]
    cache: Any = DynamicCache(config=model.config)
    for step in range(sampling.max_tokens):
        if "position_ids" in takes:
            options["position_ids"] = position_bt
        out = model(input_ids=ids_bt, attention_mask=mask_bt if padded else None, past_key_values=cache, **options)
        cache = out.past_key_values
        logits_bv = out.logits[:, -1].float()
        greedy = sampling.temperature <= 0
        picked_b = logits_bv.argmax(-1) if greedy else _draw(logits_bv, uniform_bt[:, step], sampling)
        logz_b1 = logits_bv.logsumexp(-1, keepdim=True)
        logp_b = (logits_bv.gather(-1, picked_b[:, None]) - logz_b1)[:, 0]
        if sampling.top:
            top_bk, top_ids_bk = (logits_bv - logz_b1).topk(min(sampling.top, logits_bv.shape[-1]), dim=-1)
            tops = [list(zip(i, p, strict=True)) for i, p in zip(top_ids_bk.tolist(), top_bk.tolist(), strict=True)]
        for place, (token, logp) in enumerate(zip(picked_b.tolist(), logp_b.tolist(), strict=True)):
            if done[row := alive[place]]:
                continue
            w = written[row]
            w.ids.append(token)
            w.logprobs.append(logp)
            if sampling.top:
                w.top.append(tops[place])
            if token in ends or (stopped is not None and stopped(w.ids)):
                w.finish = "stop"
            elif step + 1 < sampling.max_tokens:
                continue
            done[row] = True
            yield row, w
        left = [place for place, row in enumerate(alive) if not done[row]]
        if not left:
            return
        ids_bt, position_bt = picked_b[:, None], position_bt[:, -1:] + 1
        if len(left) <= len(alive) * 7 / 8:  # leaving costs a copy of the cache, staying a wasted row
            keep = torch.tensor(left, device=device)
            cache.batch_select_indices(keep)
            ids_bt, position_bt, mask_bt, uniform_bt = (x[keep] for x in (ids_bt, position_bt, mask_bt, uniform_bt))
            alive = [alive[place] for place in left]
        if padded:
            mask_bt = torch.cat([mask_bt, mask_bt.new_ones(len(alive), 1)], dim=1)


def pad_left(rows: Sequence[Sequence[int]], device: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes (ids_bt, mask_bt) of rows of token ids, each against the right edge; padding has id 0 and mask 0."""
    width = max(map(len, rows))
    ids_bt = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask_bt = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids_bt.to(device), mask_bt.to(device)


def positions(mask_bt: torch.Tensor) -> torch.Tensor:
    """Counts the real tokens before each one: positions that padding on either side leaves alone."""
    return (mask_bt.long().cumsum(-1) - 1).clamp(min=0)


def _uniform(seeds: Sequence[int], sampling: Sampling, device: Any) -> torch.Tensor:
    """One number in [0, 1) per row and step, each row's from its own generator, the same on every device."""
    if sampling.temperature <= 0:
        return torch.empty(len(seeds), 0, device=device)
    rows = [
        torch.rand(sampling.max_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(rows).to(device)


def _draw(logits_bv: torch.Tensor, uniform_b: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Picks one token per row by inverting the cumulative distribution at the row's number.

    In the order of the vocabulary, not of the probabilities: two tokens that are all but equal may swap ranks with the
    rounding of another batch, and must not swap what is drawn.
    """
    p_bv = (logits_bv / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        sorted_bv, order_bv = p_bv.sort(-1, descending=True)
        outside_bv = sorted_bv.cumsum(-1) - sorted_bv >= sampling.top_p  # the mass before it was enough already
        p_bv = p_bv.masked_fill(outside_bv.scatter(-1, order_bv, outside_bv), 0.0)
    cumulative_bv = p_bv.double().cumsum(-1)
    # Just under 1, so that a rounded product never reaches past the last token that has any probability.
    at_b1 = (uniform_b * (1 - 1e-12))[:, None] * cumulative_bv[:, -1:]
    return torch.searchsorted(cumulative_bv, at_b1, right=True)[:, 0]
