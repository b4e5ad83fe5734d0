"""Times one distillation step (forward and backward) beside full logits and TRL; exits 1 where limbeck misses a bound.

    python benchmarks/distill_step.py                     # vocabularies of 32,768 and 128,256; some 20 minutes
    python benchmarks/distill_step.py --vocab 32768 --rounds 3 --only sft,kl,teacher
    python benchmarks/distill_step.py --json > distill_step.json

A student of 256×4 with a tied head, a teacher of 512×6 with its own, random weights, 4 sequences of 256 tokens, every
position learned, fp32. `floor` is an SFT step as transformers does it, plus the teacher's forward: what a step costs
that only looks at both. Times are CPU seconds of the process, the variants in turn in one process, median of the
rounds with lowest and highest; memory is the peak resident memory of one step over what was resident before it, one
process for each variant. TRL's variants are there where `trl` is installed (1.16 has these names).
"""

import argparse
import ctypes
import gc
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers

from limbeck.losses import Batch
from limbeck.losses.heads import Dense, Term, Tokens, TopK, total
from limbeck.train.forward import Reader

B, T, K = 4, 256, 64
TIMES = {  # variant: (against, at most)
    "kl": ("floor", 1.10),
    "jsd": ("floor", 1.25),
    "topk": ("sft", 1.0),
}
MEMORY = {32768: 0.45, 128256: 0.32}  # of `full kl`


def model(vocab: int, hidden: int, layers: int, tied: bool) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, intermediate_size=int(hidden * 2.75) // 16 * 16,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, tie_word_embeddings=tied,
        max_position_embeddings=512, attn_implementation="sdpa",
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


class Step:
    """The two models, one batch, and a step of each kind: a function that gives a loss, or None where there is none."""

    def __init__(self, vocab: int):
        torch.manual_seed(0)
        self.student, self.teacher = model(vocab, 256, 4, True).train(), model(vocab, 512, 6, False).eval()
        self.teacher.requires_grad_(False)
        self.ids_bt = torch.randint(0, vocab, (B, T))
        self.count = B * (T - 1)
        learned_bt = torch.arange(T) < T - 1
        self.batch = Batch(
            inputs={"input_ids": self.ids_bt, "attention_mask": torch.ones_like(self.ids_bt)},
            at_n=learned_bt.expand(B, T).flatten().nonzero()[:, 0],
            labels_n=self.ids_bt[:, 1:].flatten(),
        )
        self.top_nk = torch.randint(0, vocab, (self.count, K))
        self.top_logp_nk = torch.log_softmax(torch.randn(self.count, K), -1)
        self.readers = Reader(self.student), Reader(self.teacher)
        self.variants: dict[str, Callable[[], Any]] = {
            "sft": lambda: self.student(self.ids_bt, labels=self.ids_bt).loss,
            "teacher": lambda: self.teacher_logits() is None or None,
            "fused sft": lambda: self.fused(Term(Tokens(self.batch.labels_n))),
            "kl": lambda: self.fused(Term(self.target())),
            "reverse kl": lambda: self.fused(Term(self.target(), "reverse-kl")),
            "jsd": lambda: self.fused(Term(self.target(), "generalized-jsd", {"beta": 0.5})),
            "skew kl": lambda: self.fused(Term(self.target(), "skew-kl")),
            "kl + sft": lambda: self.fused(Term(self.target()), Term(Tokens(self.batch.labels_n))),
            "topk": lambda: self.fused(Term(TopK(self.top_nk, self.top_logp_nk, tail="renormalise"))),
            "full kl": self.full_kl,
            "full topk": self.full_topk,
        }
        if importlib.util.find_spec("trl"):
            self.variants |= {
                "TRL GKD kl": lambda: self.trl_gkd(0.0),
                "TRL GKD jsd": lambda: self.trl_gkd(0.5),
                "TRL chunked kl": lambda: self.trl_chunked(0.0),
                "TRL chunked jsd": lambda: self.trl_chunked(0.5),
            }

    def run(self, variant: str) -> None:
        loss = self.variants[variant]()
        if loss is not None:
            loss.backward()
            self.student.zero_grad(set_to_none=True)

    @torch.no_grad()
    def teacher_logits(self) -> torch.Tensor:
        return self.teacher(self.ids_bt).logits[:, :-1]

    @torch.no_grad()
    def target(self) -> Dense:
        return self.readers[1](self.batch).target

    def fused(self, *terms: Term) -> torch.Tensor:
        for term in terms:
            term.scale = 1 / self.count
        seen = self.readers[0](self.batch)
        return total(seen.hidden_nd, seen.head, terms)[0]

    def full_kl(self) -> torch.Tensor:
        log_q = F.log_softmax(self.student(self.ids_bt).logits[:, :-1], -1)
        return F.kl_div(log_q, F.softmax(self.teacher_logits(), -1), reduction="none").sum(-1).sum() / self.count

    def full_topk(self) -> torch.Tensor:
        log_q = F.log_softmax(self.student(self.ids_bt).logits[:, :-1].flatten(0, 1), -1).gather(-1, self.top_nk)
        return (self.top_logp_nk.exp() * (self.top_logp_nk - log_q)).sum() / self.count

    def trl_gkd(self, beta: float) -> torch.Tensor:
        from trl.experimental.gkd import GKDTrainer

        logits, labels = self.student(self.ids_bt).logits[:, :-1], self.ids_bt[:, 1:]
        return GKDTrainer.generalized_jsd_loss(logits, self.teacher_logits(), labels=labels, beta=beta)

    def trl_chunked(self, beta: float) -> torch.Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        hidden = self.student.model(self.ids_bt).last_hidden_state[:, :-1].flatten(0, 1)
        with torch.no_grad():
            said = self.teacher.model(self.ids_bt).last_hidden_state[:, :-1].flatten(0, 1)
        heads = self.student.lm_head.weight, self.teacher.lm_head.weight
        return ChunkedDivergenceFunction.apply(hidden, heads[0], None, said, heads[1], None, beta)[0].sum() / self.count


def timed(step: Step, variants: list[str], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant in each round; the first, unseen round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(rounds + 1):
        for name in variants:
            gc.collect()
            began = time.process_time()
            step.run(name)
            if round_:
                seconds[name].append(time.process_time() - began)
            print(f"\r{round_}/{rounds} {name:20}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return seconds


def peak_of(vocab: int, variant: str) -> float:
    """MB that one step takes over what lies in memory before it: the second step of a process of its own."""
    step, libc = Step(vocab), ctypes.CDLL("libc.so.6")
    step.run(variant)
    gc.collect()
    libc.malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as marks:
        marks.write("5")  # forget the peak so far
    before = resident("VmRSS")
    step.run(variant)
    return resident("VmHWM") - before


def resident(what: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(what)) / 1024


def measured(vocab: int, rounds: int, only: list[str]) -> dict[str, Any]:
    step = Step(vocab)
    names = [name for name in step.variants if not only or name in only]
    seconds = timed(step, names, rounds)
    del step
    gc.collect()
    memory = {}
    for name in names:
        given = [sys.executable, __file__, "--vocab", str(vocab), "--peak", name]
        memory[name] = float(subprocess.run(given, capture_output=True, text=True, check=True).stdout.split()[-1])
    return {"seconds": seconds, "memory": memory}


def show(vocab: int, found: dict[str, Any]) -> list[bool]:
    """Prints the table and the bounds; gives which were met."""
    middle = {name: statistics.median(values) for name, values in found["seconds"].items()}
    if {"sft", "teacher"} <= middle.keys():
        middle["floor"] = middle["sft"] + middle["teacher"]
    print(f"\n{vocab:,} tokens{'':16}CPU s  (lowest–highest)   x floor      MB   x full kl")
    for name, values in found["seconds"].items():
        spread, floor = f"({min(values):.2f}–{max(values):.2f})", middle.get("floor")
        ratio = f"{middle[name] / floor:8.2f}" if floor else ""
        held, full = found["memory"][name], found["memory"].get("full kl")
        print(f"{name:24} {middle[name]:8.2f}  {spread:16} {ratio:>8} {held:8.0f} {held / full if full else 0:8.2f}")
    met = []
    for name, (against, most) in TIMES.items():
        if name in middle and against in middle:
            ratio = middle[name] / middle[against]
            met.append(ratio <= most)
            print(f"{'PASS' if met[-1] else 'MISS'}  {name}: {ratio:.2f}x of {against} (at most {most})")
    if vocab in MEMORY and {"kl", "full kl"} <= found["memory"].keys():
        ratio = found["memory"]["kl"] / found["memory"]["full kl"]
        met.append(ratio <= MEMORY[vocab])
        print(f"{'PASS' if met[-1] else 'MISS'}  kl: {ratio:.2f}x of full kl's memory (at most {MEMORY[vocab]})")
    return met


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--vocab", type=int, nargs="*", default=[32768, 128256])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", type=lambda text: text.split(","), default=[])
    options.add_argument("--json", action="store_true")
    options.add_argument("--peak", help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if given.peak:
        print(peak_of(given.vocab[0], given.peak))
        return
    found = {vocab: measured(vocab, given.rounds, given.only) for vocab in given.vocab}
    if given.json:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
        print(json.dumps({"load": os.getloadavg(), "threads": torch.get_num_threads(), **versions, "found": found}))
        return
    met = [one for vocab, numbers in found.items() for one in show(vocab, numbers)]
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
