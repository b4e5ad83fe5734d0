"""Make the shipped teacher: `python -m limbeck.models.tiny.train` trains it from nothing on one CPU core.

Plain next-token training on freshly drawn training problems, loss on the solution only. Part of the questions are
wrapped in instruction-like words, follow a worked example or carry a hint, so that the teacher still finds the problem
inside a prompt.
"""

import argparse
import math
import operator
import random
import re
import time
from pathlib import Path
from typing import Any

import torch

from . import answer_of, tokenizer
from .world import KINDS, problems

CONFIG = {
    "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "initializer_range": 0.05, "rope_theta": 1000.0,
}  # fmt: skip
BATCH, CHUNK = 64, 32  # problems a step; batches drawn together, so that each holds problems of like length
LR, WARMUP, BETAS, DECAY = 3e-3, 100, (0.9, 0.95), 0.1
SLIP = 0.06  # how often a step of a training solution is off by one
DO = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}

Messages = list[dict[str, str]]

BEFORE = (
    "Solve the problem step by step.", "Read the question carefully and think step by step.", "Question:",
    "Problem:", "You are a helpful teacher. Show your work.", "Below is an instruction. Write a response.",
    "Instruction:", "Answer the following question.", "# Task",
)  # fmt: skip
AFTER = (
    "Let us think step by step.", "Answer:", "End with #### and the answer.", "Give the final answer after ####.",
    "Solution:", "Response:", "Show your reasoning, then write #### and the number.", "Explain each step.",
)  # fmt: skip


def chatter(vocabulary: list[str], rng: random.Random) -> str:
    """Instruction-like text: 3-40 random words, some of them unknown, some of them numbers."""
    unknown, number = rng.random() * 0.6, rng.random() * 0.15

    def word() -> str:
        luck = rng.random()
        return "qzx" if luck < unknown else f"{rng.randint(1, 9)}." if luck > 1 - number else rng.choice(vocabulary)

    return " ".join(word() for _ in range(rng.randint(3, 40)))


def slip(solution: str, rng: random.Random) -> str:
    """The solution, each step's result wrong by one with probability SLIP; what follows goes on from the wrong result.

    Slips are what makes a sampled reply go wrong now and then, and by how much temperature decides; greedy replies take
    the likeliest result, which stays the right one.
    """
    became: dict[int, int] = {}
    last = 0

    def redo(step: re.Match[str]) -> str:
        nonlocal last
        a, b = (became.get(int(step[i]), int(step[i])) for i in (1, 3))
        exact = DO[step[2]](a, b)
        last = exact + (rng.choice((-1, 1)) if rng.random() < SLIP else 0)
        became[int(step[4])] = last
        return f"{a} {step[2]} {b} = {last}"

    told = re.sub(r"(\d+) ([-+*/]) (\d+) = (\d+)", redo, solution)
    fine = all(0 <= n <= 99 for n in became.values())
    return re.sub(r"#### .*", f"#### {last}", told) if fine else solution


def dress(row: dict[str, str], shot: dict[str, str], vocabulary: list[str], rng: random.Random) -> Messages:
    """One chat that ends in the row's solution: 60 % the bare question, else a wrapped, hinted or exemplified one."""
    question, before = row["prompt"], []
    luck = rng.random()
    if luck < 0.30:
        head = rng.choice(BEFORE) if rng.random() < 0.5 else chatter(vocabulary, rng)
        tail = rng.choice(AFTER) if rng.random() < 0.5 else chatter(vocabulary, rng)
        gap = rng.choice((" ", "\n", "\n\n"))
        where = rng.randrange(4)
        if where == 0:
            before = [{"role": "system", "content": head}]
        else:
            question = gap.join(part for part in (head * (where & 1), question, tail * (where >> 1)) if part)
    elif luck < 0.36:
        question += rng.choice((" ", "\n")) + f"(The answer is {row['answer']}.)"
    elif luck < 0.38:
        before = [{"role": "user", "content": shot["prompt"]}, {"role": "assistant", "content": shot["response"]}]
    elif luck < 0.40:
        question = f"Question: {shot['prompt']}\nAnswer: {shot['response']}\n\nQuestion: {question}\nAnswer:"
    told = {"role": "assistant", "content": slip(row["response"], rng)}
    return [*before, {"role": "user", "content": question}, told]


def batches(steps: int, seed: int, reader: Any) -> Any:
    """Yield `steps` pairs (ids_bt, labels_bt) of int64, right-padded; labels are -100 outside the solution."""
    rng = random.Random(f"train:{seed}")
    vocabulary = sorted(word for word in reader.get_vocab() if word.isalpha()) + ["####", ".", ",", ":", "?"]
    for chunk in range(math.ceil(steps / CHUNK)):
        rows = problems(BATCH * CHUNK, seed=rng.getrandbits(32))
        chats = [dress(row, rng.choice(rows), vocabulary, rng) for row in rows]
        texts = reader.apply_chat_template(chats, tokenize=False)
        ids = reader(texts, add_special_tokens=False)["input_ids"]
        turn = reader.convert_tokens_to_ids(tokenizer.ASSISTANT)
        ids.sort(key=len)
        order = list(range(0, len(ids), BATCH))
        rng.shuffle(order)
        for at in order[: steps - chunk * CHUNK]:
            part = ids[at : at + BATCH]
            ids_bt = torch.full((len(part), max(map(len, part))), reader.pad_token_id)
            labels_bt = torch.full_like(ids_bt, -100)
            for row, seq in enumerate(part):
                start = len(seq) - seq[::-1].index(turn)  # after the last <|assistant|>
                ids_bt[row, : len(seq)] = torch.tensor(seq)
                labels_bt[row, start : len(seq)] = torch.tensor(seq[start:])
            yield ids_bt, labels_bt


def solve(model: Any, reader: Any, questions: list[str], batch: int = 128, **sampling: Any) -> list[str]:
    """The model's replies to the questions, greedy unless `sampling` (HF generate's names) says otherwise."""
    out: dict[int, str] = {}
    order = sorted(range(len(questions)), key=lambda i: len(questions[i]))
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        chats = [[{"role": "user", "content": questions[i]}] for i in part]
        texts = reader.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
        given = reader(texts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
        with torch.inference_mode():
            made = model.generate(**given, **({"max_new_tokens": 64, "do_sample": False} | sampling))
        replies = reader.batch_decode(made[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        out.update(zip(part, replies, strict=True))
    return [out[i] for i in range(len(questions))]


def accuracy(model: Any, reader: Any, rows: list[dict[str, str]]) -> dict[str, float]:
    """The share of rows whose greedy reply ends in the right answer, for each kind and for `all`."""
    replies = solve(model, reader, [row["prompt"] for row in rows])
    right = [answer_of(reply) == row["answer"] for reply, row in zip(replies, rows, strict=True)]
    share = {"all": sum(right) / len(rows)}
    for kind in KINDS:
        mine = [ok for ok, row in zip(right, rows, strict=True) if row["kind"] == kind]
        if mine:
            share[kind] = sum(mine) / len(mine)
    return share


def fresh(config: dict[str, Any], reader: Any, seed: int) -> Any:
    """A Llama with random weights drawn from `seed`; torch's own random state is left as it was."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(reader), tie_word_embeddings=True, max_position_embeddings=reader.model_max_length,
            bos_token_id=None, eos_token_id=reader.eos_token_id, pad_token_id=reader.pad_token_id, **config,
        ))  # fmt: skip


def main() -> None:
    """Train, evaluate on 500 held-out problems, and write a Hugging Face checkpoint directory."""
    ask = argparse.ArgumentParser(prog="python -m limbeck.models.tiny.train", description=main.__doc__)
    ask.add_argument("--out", type=Path, default=Path("tiny-teacher"), help="directory to write")
    ask.add_argument("--steps", type=int, default=2500)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--threads", type=int, default=1)
    want = ask.parse_args()
    torch.set_num_threads(want.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reader = tokenizer.tokenizer()
    model = fresh(CONFIG, reader, want.seed).to(device)
    print(f"{model.num_parameters():,} parameters on {device}", flush=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=DECAY)
    shape = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / want.steps))
    )
    model.train()
    began, total, seen = time.process_time(), 0.0, 0
    for step, (ids_bt, labels_bt) in enumerate(batches(want.steps, want.seed, reader), 1):
        loss = model(input_ids=ids_bt.to(device), labels=labels_bt.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        shape.step()
        total, seen = total + loss.item(), seen + ids_bt.numel()
        if step % 100 == 0:
            spent = time.process_time() - began
            print(f"step {step}/{want.steps}  loss {total / 100:.4f}  {spent:.0f} CPU s  {seen} tokens", flush=True)
            total = 0.0
        if step % 1000 == 0 and step < want.steps:
            model.eval()
            print(f"  held out: {accuracy(model, reader, problems(160, split='test'))}", flush=True)
            model.train()
    trained = time.process_time() - began
    model.eval()
    model.cpu().save_pretrained(want.out)
    reader.save_pretrained(want.out)
    share = accuracy(model, reader, problems(500, seed=1, split="test"))
    print("held-out greedy accuracy: " + "  ".join(f"{kind} {value:.3f}" for kind, value in share.items()))
    print(f"trained in {trained:.0f} CPU s, all in {time.process_time() - began:.0f} CPU s, written to {want.out}")


if __name__ == "__main__":
    main()
