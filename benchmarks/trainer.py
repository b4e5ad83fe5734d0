"""Times whole training steps beside bare loops, transformers and TRL; exits 1 where limbeck misses a bound.

    python benchmarks/trainer.py                              # some 20 minutes of one core
    python benchmarks/trainer.py --data lognormal --vocab 4096 --batch 16
    python benchmarks/trainer.py --json > trainer.json

A student of 256×4 with a tied head and `--vocab` (32,768) words, random weights, fp32, AdamW, gradients clipped;
`--batch` rows to a step, of 256 tokens each (`fixed`) or of log-normal lengths up to 256 with a third of that as their
mean. Every token behind a row's first is learned. All contestants see the same rows in the same order, padded to the
longest of a step; the packed ones differ in that alone, and TRL's in that it fills `--batch` whole rows to a step, some
three times as many tokens.

Each contestant is a process of its own that is told to run a few steps when its turn comes and waits otherwise. A
number is tokens per CPU second, the rows' own tokens and no padding, from the end of one step to the end of another:
the median of the rounds with lowest and highest. `start-up` is the CPU seconds from the rows as text (limbeck) or as
ids (the others) to the first step. limbeck is `train` as a user calls it. TRL's are there where `trl` is installed.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

LENGTH, ROWS, WARM = 256, 600, 2
PAD, END, UNKNOWN = 0, 1, 2
DATA = ("fixed", "lognormal")
BOUNDS = {  # data: (who, against whom, at least)
    "fixed": [("limbeck", "bare", 0.95), ("limbeck", "bare, fused head", 0.95)],
    "lognormal": [
        ("limbeck", "bare", 0.95),
        ("limbeck", "bare, fused head", 0.95),
        ("limbeck packed", "bare", 1.4),
        ("limbeck packed", "limbeck", 1.4),
    ],
}


# -- the student and the rows


def student(vocab: int) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab, hidden_size=256, num_hidden_layers=4, intermediate_size=704, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=512, attn_implementation="sdpa",
        pad_token_id=PAD, bos_token_id=None, eos_token_id=END,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": PAD, "<end>": END, "<unk>": UNKNOWN} | {f"w{i}": i for i in range(3, vocab)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>", padding_side="right"
    )


def rows(data: str, vocab: int) -> list[list[int]]:
    """Ids of each row; the last one ends it."""
    chance = torch.Generator().manual_seed(1)
    drawn = torch.exp(torch.randn(ROWS, generator=chance) * 0.7 + 4.2).clamp(16, LENGTH)
    sizes = [LENGTH] * ROWS if data == "fixed" else drawn.int().tolist()
    return [[*torch.randint(3, vocab, (size - 1,), generator=chance).tolist(), END] for size in sizes]


def ordered(given: argparse.Namespace) -> list[list[int]]:
    """The rows as limbeck's training reads them, so that all have the same ones in a step."""
    from limbeck.train.schedule import Schedule

    held, places = rows(given.data, given.vocab), given.total * given.batch
    schedule = Schedule([range(ROWS)], places, given.total, given.batch, seed=0)  # type: ignore[list-item]
    return [held[schedule[place][1][0]] for place in range(places)]  # type: ignore[index]


def collate(items: list[Any]) -> dict[str, torch.Tensor]:
    ids = [torch.tensor(item["input_ids"]) for item in items]
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {"input_ids": pad(ids, batch_first=True), "labels": pad(ids, batch_first=True, padding_value=-100)}
    if min(map(len, ids)) < max(map(len, ids)):
        batch["attention_mask"] = (batch["labels"] != -100).long()
    return batch


# -- a contestant, in its own process


class Turns:
    """Runs a training in turns: after so many steps it says what they took, and waits to be told to go on."""

    def __init__(self, given: argparse.Namespace):
        self.says = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what others print is no message
        self.steps, self.left, self.tokens = given.steps, WARM, 0
        self.began = time.process_time()
        self.startup: float | None = None

    def first(self) -> None:
        """The first step begins."""
        if self.startup is None:
            self.startup = time.process_time() - self.began

    def step(self, tokens: int) -> None:
        """A step has ended; it read so many tokens."""
        self.left, self.tokens = self.left - 1, self.tokens + tokens
        if self.left:
            return
        said = {"cpu": time.process_time() - self.began, "tokens": self.tokens, "startup": self.startup}
        print(json.dumps(said), file=self.says, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # all rounds are over, and nobody wants the model
        self.left, self.tokens, self.began = self.steps, 0, time.process_time()


def bare(given: argparse.Namespace, fused: bool) -> NoReturn:
    """The loop that one writes by hand, with transformers' loss, or limbeck's head on the learned tokens."""
    from limbeck.losses.heads import Head, Term, Tokens, total

    model, order = student(given.vocab).train(), ordered(given)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    turns = Turns(given)
    turns.first()
    while True:
        for start in range(0, len(order), given.batch):
            now = order[start : start + given.batch]
            batch = collate([{"input_ids": row} for row in now])
            if fused:
                labels_bt = batch.pop("labels")[:, 1:]
                hidden_btd = model.model(**batch).last_hidden_state[:, :-1]
                learned_bt = labels_bt != -100
                labels_n = labels_bt[learned_bt]
                term = Term(Tokens(labels_n), scale=1 / len(labels_n))
                loss = total(hidden_btd[learned_bt], Head(model.lm_head.weight), [term])[0]
            else:
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            turns.step(sum(map(len, now)))


def watch(given: argparse.Namespace, turns: Turns, counted: list[int] | None = None) -> Any:
    """A callback that takes turns; tokens are those of the rows, or what was `counted`."""
    import transformers

    order = ordered(given)

    class Watch(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.first()

        def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            at = (state.global_step - 1) * given.batch
            turns.step(counted.pop() if counted is not None else sum(map(len, order[at : at + given.batch])))

    return Watch()


def limbeck(given: argparse.Namespace, packed: bool) -> None:
    """`train`, on rows of text, with its start in a directory as transformers saves it."""
    import transformers

    import limbeck as lb

    home = Path(given.home) / given.contestant
    student(given.vocab).save_pretrained(home / "student")
    tokenizer(given.vocab).save_pretrained(home / "student")
    words = [[f"w{i}" for i in row[:-1]] for row in rows(given.data, given.vocab)]
    text = [{"prompt": first + " ", "response": " ".join(others)} for first, *others in words]
    turns = Turns(given)
    transformers.trainer.DEFAULT_CALLBACKS.append(watch(given, turns))
    turns.began = time.process_time()
    with lb.Run(home / "run", progress=False):
        lb.train(
            f"hf/{home / 'student'}", text, lb.SFT, max_steps=given.total, per_device_train_batch_size=given.batch,
            learning_rate=1e-4, max_length=LENGTH, packing=packed, seed=0,
        )  # fmt: skip


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """What transformers and TRL are told, as limbeck tells it."""
    return {
        "output_dir": f"{given.home}/{given.contestant}", "use_cpu": True, "per_device_train_batch_size": given.batch,
        "max_steps": given.total, "report_to": "none", "save_strategy": "no", "logging_steps": 10, "disable_tqdm": True,
        "learning_rate": 1e-4, "optim": "adamw_torch_fused", "dataloader_pin_memory": False,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip


def transformers_(given: argparse.Namespace) -> None:
    import transformers

    items = [{"input_ids": row} for row in ordered(given)]
    model, turns = student(given.vocab), Turns(given)
    trainer = transformers.Trainer(
        model, transformers.TrainingArguments(**settings(given)), train_dataset=items, data_collator=collate,
        callbacks=[watch(given, turns)],
    )  # fmt: skip
    trainer.train()


def trl(given: argparse.Namespace, packed: bool) -> None:
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    held = ordered(given) * (4 if packed else 1)
    model, reads, counted = student(given.vocab), tokenizer(given.vocab), []
    turns = Turns(given)
    args = SFTConfig(
        **settings(given), bf16=False, gradient_checkpointing=False, max_length=LENGTH, packing=packed,
        dataset_num_proc=None,
    )  # fmt: skip
    trainer = SFTTrainer(
        model, args, train_dataset=Dataset.from_dict({"input_ids": held}), processing_class=reads,
        callbacks=[watch(given, turns, counted)],
    )  # fmt: skip
    own = trainer.compute_loss

    def counting(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        counted.append(int((inputs["input_ids"] != PAD).sum()))
        return own(model, inputs, *args, **kwargs)

    trainer.compute_loss = counting
    trainer.train()


CONTESTANTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "bare": lambda given: bare(given, fused=False),
    "bare, fused head": lambda given: bare(given, fused=True),
    "limbeck": lambda given: limbeck(given, packed=False),
    "limbeck packed": lambda given: limbeck(given, packed=True),
    "transformers": transformers_,
    "TRL": lambda given: trl(given, packed=False),
    "TRL packed": lambda given: trl(given, packed=True),
}


# -- the race


def race(data: str, names: list[str], given: argparse.Namespace) -> dict[str, Any]:
    """Gives each contestant its turns, one at a time. Tokens per CPU second of each round, and CPU s of its start."""
    found: dict[str, Any] = {name: {"tokens_per_cpu_s": []} for name in names}
    with tempfile.TemporaryDirectory() as home:
        told = [f"--{name}={getattr(given, name)}" for name in ("batch", "vocab", "steps", "rounds")]
        running = {}
        for name in names:
            print(f"\r{data}: {name} starts{'':20}", end="", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--data", data, *told, "--home", home, "--contestant", name]
            pipe, log = subprocess.PIPE, Path(home) / f"{name}.log"
            with log.open("w") as errors:
                running[name] = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe, stderr=errors)
            found[name]["startup"] = answer(running[name], log)["startup"]
        for round_ in range(given.rounds):
            for name, process in running.items():
                print(f"\r{data}: {round_ + 1}/{given.rounds} {name:24}", end="", file=sys.stderr, flush=True)
                process.stdin.write("go\n")
                process.stdin.flush()
                said = answer(process, Path(home) / f"{name}.log")
                found[name]["tokens_per_cpu_s"].append(said["tokens"] / said["cpu"])
        for process in running.values():
            process.stdin.close()
            process.wait()
    print(file=sys.stderr)
    return found


def answer(process: Any, log: Path) -> dict[str, Any]:
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{' '.join(process.args)} ended: {log.read_text()[-2000:]}")
    return json.loads(line)


def show(data: str, found: dict[str, Any]) -> list[bool]:
    """Prints the table and the bounds; gives which were met."""
    middle = {name: statistics.median(numbers["tokens_per_cpu_s"]) for name, numbers in found.items()}
    print(f"\n{data:20}tokens per CPU s  (lowest–highest)   x bare   start-up, CPU s")
    for name, numbers in found.items():
        values = numbers["tokens_per_cpu_s"]
        spread = f"({min(values):.0f}–{max(values):.0f})"
        ratio = f"{middle[name] / middle['bare']:.2f}" if "bare" in middle else ""
        print(f"{name:20}{middle[name]:16.0f}  {spread:18} {ratio:>6} {numbers['startup']:17.1f}")
    met = []
    for who, against, least in BOUNDS[data]:
        if who in middle and against in middle:
            ratio = middle[who] / middle[against]
            met.append(ratio >= least)
            print(f"{'PASS' if met[-1] else 'MISS'}  {data}, {who}: {ratio:.2f}x of {against} (at least {least})")
    return met


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    options.add_argument("--batch", type=int, default=4, help="rows to a step")
    options.add_argument("--vocab", type=int, default=32768)
    options.add_argument("--steps", type=int, default=6, help="steps to a turn")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--only", type=lambda text: text.split("/"), default=[], help="contestants, with / between")
    options.add_argument("--json", action="store_true")
    options.add_argument("--home", help=argparse.SUPPRESS)
    options.add_argument("--contestant", help=argparse.SUPPRESS)
    given = options.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if given.contestant:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        given.data, given.total = given.data[0], WARM + given.rounds * given.steps
        CONTESTANTS[given.contestant](given)
        return
    there = [name for name in CONTESTANTS if importlib.util.find_spec("trl") or not name.startswith("TRL")]
    found = {}
    for data in given.data:
        fits = [name for name in there if data != "fixed" or "packed" not in name]  # where there is nothing to pack
        found[data] = race(data, [name for name in fits if not given.only or name in given.only], given)
    if given.json:
        versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl")
                    if importlib.util.find_spec(name)}  # fmt: skip
        print(
            json.dumps(
                {"load": os.getloadavg(), "batch": given.batch, "vocab": given.vocab, **versions, "found": found}
            )
        )
        return
    met = [one for data, numbers in found.items() for one in show(data, numbers)]
    sys.exit(not all(met))


if __name__ == "__main__":
    main()
