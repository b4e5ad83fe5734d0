"""Decodes the shipped teacher's answers in four ways, side by side; exits 1 where limbeck misses its bound.

    python benchmarks/decode.py [--rows 2000] [--rounds 3] [--json]

`loop` is the best batched loop that we could write by hand for this one model: plain torch without transformers, fused
weights, keys and values in blocks made once, rows that are done taken out, nothing but token ids and text as its
result. `generate` is transformers' own, in batches of equal size, sorted by length. `reply` is limbeck's model under
concurrency, with log-probabilities, each row from its own seed; `ask` the verb, with ledger and stage on disk. All
sample at the temperature of the quickstart. Numbers are medians of the rounds; the ways take turns within a round, and
each is credited with the tokens that it wrote. The bound: reply and ask within 1.5 of the loop, by the clock and in
CPU seconds.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

import limbeck as lb
from limbeck.models import Request, get
from limbeck.models.tiny import QUICKSTART, problems

BOUND = 1.5
MOST_TOKENS, TEMPERATURE = 96, QUICKSTART["temperature"]


class Loop:
    """The teacher's weights, laid out for decoding: norms folded into the matrices behind them, projections joined."""

    def __init__(self, model: Any, tokenizer: Any):
        c = model.config
        self.tokenizer, self.end, self.eps = tokenizer, c.eos_token_id, c.rms_norm_eps
        self.heads, self.width = c.num_attention_heads, c.head_dim
        self.layers = []
        for layer in model.model.layers:
            a, m = layer.self_attn, layer.mlp
            qkv = torch.cat([a.q_proj.weight * self.width**-0.5, a.k_proj.weight, a.v_proj.weight])
            gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight])
            self.layers.append((
                (qkv * layer.input_layernorm.weight).T.contiguous(), a.o_proj.weight.T.contiguous(),
                (gate_up * layer.post_attention_layernorm.weight).T.contiguous(), m.down_proj.weight.T.contiguous(),
            ))  # fmt: skip
        self.embedding = model.model.embed_tokens.weight
        self.head = (model.lm_head.weight * model.model.norm.weight).T.contiguous()
        angle_td = torch.arange(c.max_position_embeddings)[:, None] * model.model.rotary_emb.inv_freq
        self.cos_td = torch.cat([angle_td.cos()] * 2, dim=-1)
        self.sin_td = torch.cat([-angle_td.sin(), angle_td.sin()], dim=-1)

    @torch.inference_mode()
    def __call__(self, prompts: list[str], rows: int) -> int:
        ids = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        ids.sort(key=len)
        total = 0
        for start in range(0, len(ids), rows):
            answers = self.batch(ids[start : start + rows])
            self.tokenizer.batch_decode(answers, skip_special_tokens=True)
            total += sum(map(len, answers))
        return total

    def batch(self, prompts: list[list[int]]) -> list[list[int]]:
        """Writes the answers to one batch of prompts, which end at one column."""
        n, longest = len(prompts), max(map(len, prompts))
        shape = (len(self.layers), n, self.heads, longest + MOST_TOKENS, self.width)
        keys, values = torch.zeros(shape), torch.zeros(shape)
        starts = torch.tensor([longest - len(prompt) for prompt in prompts])
        hidden_bt = torch.arange(shape[3]) < starts[:, None]
        bias_bt = torch.zeros(n, shape[3]).masked_fill_(hidden_bt, -1e9)
        ids_bt = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        position_bt = (torch.arange(longest) - starts[:, None]).clamp(min=0)
        causal_tt = torch.full((longest, longest), -1e9).triu(1)
        logits_bv = self.forward(ids_bt, position_bt, keys, values, 0, bias_bt[:, None, None, :longest] + causal_tt)
        answers: list[list[int]] = [[] for _ in prompts]
        alive = list(range(n))
        for column in range(longest, longest + MOST_TOKENS):
            p_bv = logits_bv.div_(TEMPERATURE).softmax(-1)
            noise_bv = torch.empty_like(p_bv).exponential_()
            token_b = (p_bv / noise_bv).argmax(-1)  # a draw of each row's distribution
            left = []
            for place, (row, token) in enumerate(zip(alive, token_b.tolist(), strict=True)):
                answers[row].append(token)
                if token != self.end:
                    left.append(place)
            if not left or column == longest + MOST_TOKENS - 1:
                break
            if len(left) < len(alive):
                gone = sorted(set(range(len(alive))) - set(left))
                fill = [place for place in left if place >= len(left)]
                holes = [place for place in gone if place < len(left)]
                order = list(range(len(left)))
                for hole, place in zip(holes, fill, strict=True):
                    order[hole] = place
                if holes:
                    keys[:, holes, :, :column] = keys[:, fill, :, :column]
                    values[:, holes, :, :column] = values[:, fill, :, :column]
                token_b, starts, bias_bt = token_b[order], starts[order], bias_bt[order]
                alive = [alive[place] for place in order]
                keys, values = keys[:, : len(left)], values[:, : len(left)]
            bias = bias_bt[:, None, None, : column + 1]
            logits_bv = self.forward(token_b[:, None], (column - starts)[:, None], keys, values, column, bias)
        return answers

    def forward(self, ids_bt: Any, position_bt: Any, keys: Any, values: Any, column: int, bias: Any) -> torch.Tensor:
        (b, t), heads, end = ids_bt.shape, self.heads, column + ids_bt.shape[1]
        x = self.embedding[ids_bt].view(b * t, -1)
        d = x.shape[-1]
        cos, sin = self.cos_td[position_bt][:, :, None], self.sin_td[position_bt][:, :, None]
        for i, (qkv, out, gate_up, down) in enumerate(self.layers):
            qkv_bthd = (F.rms_norm(x, (d,), eps=self.eps) @ qkv).view(b, t, 3 * heads, self.width)
            qk = qkv_bthd[:, :, : 2 * heads]
            turned = torch.cat([qk[..., self.width // 2 :], qk[..., : self.width // 2]], dim=-1)
            qk = torch.addcmul(qk * cos, turned, sin).transpose(1, 2)
            keys[i, :, :, column:end] = qk[:, heads:]
            values[i, :, :, column:end] = qkv_bthd[:, :, 2 * heads :].transpose(1, 2)
            score = (qk[:, :heads] @ keys[i, :, :, :end].transpose(-1, -2)).add_(bias)
            seen = score.softmax(-1) @ values[i, :, :, :end]
            x = torch.addmm(x, seen.transpose(1, 2).reshape(b * t, d), out)
            gate, up = (F.rms_norm(x, (d,), eps=self.eps) @ gate_up).chunk(2, dim=-1)
            x = torch.addmm(x, F.silu(gate).mul_(up), down)
        return F.rms_norm(x.view(b, t, d)[:, -1], (d,), eps=self.eps) @ self.head


def generate(model: Any, tokenizer: Any, prompts: list[str], rows: int) -> int:
    """Decodes with transformers' `generate`, sorted batches."""
    prompts, total = sorted(prompts, key=len), 0
    for start in range(0, len(prompts), rows):
        batch = tokenizer(
            prompts[start : start + rows],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        out = model.generate(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], max_new_tokens=MOST_TOKENS,
            do_sample=True, temperature=TEMPERATURE, top_k=0,
        )[:, batch["input_ids"].shape[1] :]  # fmt: skip
        tokenizer.batch_decode(out, skip_special_tokens=True)
        total += int((out != model.config.pad_token_id).sum())
    return total


def reply(model: Any, rows: list[dict]) -> int:
    """Asks limbeck's model for all replies at once, as many in flight as it takes."""

    async def all_of_them() -> int:
        left = iter(enumerate(rows))

        async def worker() -> int:
            wrote = 0
            for i, row in left:
                request = Request(
                    [{"role": "user", "content": row["prompt"]}], temperature=TEMPERATURE, max_tokens=MOST_TOKENS
                )
                wrote += (await model.reply(request, f"{i:x}")).completion_tokens
            return wrote

        return sum(await asyncio.gather(*(worker() for _ in range(model.max_concurrency))))

    return asyncio.run(all_of_them())


def ask(rows: list[dict]) -> int:
    """Asks with the verb, in a fresh run directory."""
    with tempfile.TemporaryDirectory() as out, lb.Run(out, progress=False):
        settings = {"temperature": TEMPERATURE, "max_tokens": MOST_TOKENS, "meta": ("usage",)}
        answers = lb.ask(lb.Table.from_rows(rows), "tiny/teacher", "{prompt}", **settings)
        return sum(row["response_usage"]["completion_tokens"] for row in answers)


def timed(way: Callable[[], int]) -> tuple[float, float]:
    """Tokens per second, by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = way()
    return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)


def main(rows: int, rounds: int, width: int, as_json: bool) -> int:
    torch.manual_seed(0)
    teacher: Any = get("tiny/teacher")
    model, tokenizer = teacher.weights(), teacher.tokenizer
    loop = Loop(model, tokenizer)
    asked = [{"prompt": p["prompt"]} for p in problems(rows, seed=1)]
    turns = [[{"role": "user", "content": row["prompt"]}] for row in asked]
    prompts = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ways: dict[str, Callable[[], int]] = {
        "loop": lambda: loop(prompts, width),
        "generate": lambda: generate(model, tokenizer, prompts, width),
        "reply": lambda: reply(teacher, asked),
        "ask": lambda: ask(asked),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(timed(way))
    wall, cpu = ({name: statistics.median(x[i] for x in each) for name, each in found.items()} for i in (0, 1))
    missed = [n for n in ("reply", "ask") if wall["loop"] > BOUND * wall[n] or cpu["loop"] > BOUND * cpu[n]]
    if as_json:
        print(
            json.dumps({"rows": rows, "threads": torch.get_num_threads(), "wall": wall, "cpu": cpu, "missed": missed})
        )
        return 1 if missed else 0
    print(f"{'':10}{'tokens/s':>10}{'loop is':>9}{'tokens/CPU s':>14}{'loop is':>9}")
    for name in ways:
        ratios = wall["loop"] / wall[name], cpu["loop"] / cpu[name]
        print(f"{name:10}{wall[name]:>10.0f}{ratios[0]:>8.2f}x{cpu[name]:>14.0f}{ratios[1]:>8.2f}x")
    return 1 if missed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=128, help="rows a batch, of loop and generate")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    sys.exit(main(given.rows, given.rounds, given.width, given.json))
