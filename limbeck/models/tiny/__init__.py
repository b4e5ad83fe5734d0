"""The shipped tiny models: a trained teacher, an untrained student, and the problems that both are made for.

Everything here runs offline on one CPU core. Importing this package loads no torch and no transformers.
"""

import re
from pathlib import Path
from typing import Any

from .world import problems

__all__ = ["QUICKSTART", "TEACHER", "answer_of", "problems", "student"]

HERE = Path(__file__).parent
TEACHER = HERE / "teacher"  # a Hugging Face checkpoint directory
STUDENT = HERE / "student.json"  # the student's shape, as fields of LlamaConfig

# Settings under which the student learns the teacher's reasoning in half a minute of one CPU core, whatever the seed:
# `problems` training problems, the teacher's replies at `temperature` with the wrong ones dropped, `steps` steps of
# `batch` rows with AdamW (default betas, no weight decay, gradients clipped at 1), judged on `eval_problems` others.
QUICKSTART: dict[str, Any] = {
    "student": "student.json",
    "problems": 4000,
    "temperature": 0.7,
    "eval_problems": 300,
    "steps": 500,
    "batch": 32,
    "lr": 3e-3,
    "warmup": 30,  # steps
    "schedule": "linear",  # down to 0 at the last step
}


def answer_of(text: str) -> str | None:
    """The answer that a solution states: what follows its last `####`, or None where it states none.

    A number loses its thousands' commas and an empty fraction (`1,200.0` is `1200`); anything else is the rest of the
    line without blanks and a full stop at its ends.
    """
    _, mark, tail = text.rpartition("####")
    stated = tail.strip().split("\n")[0].strip(" .")
    if not mark or not stated:
        return None
    number = re.search(r"-?\d[\d,]*(?:\.\d+)?", stated)
    if number is None:
        return stated
    whole, _, fraction = number.group().replace(",", "").partition(".")
    return f"{whole}.{fraction}" if fraction.strip("0") else whole


def student(seed: int, out: Path) -> Path:
    """Write an untrained student as a Hugging Face checkpoint directory and return it.

    The architecture is `student.json`, the tokenizer the teacher's; the weights are drawn from `seed` alone.
    """
    import json

    from . import train

    reader = train.tokenizer.tokenizer()
    train.fresh(json.loads(STUDENT.read_text()), reader, seed).save_pretrained(out)
    reader.save_pretrained(out)
    return Path(out)
