"""The models that come with limbeck, by name: `tiny/teacher`, and `tiny/student` with the weights of a seed."""

import contextlib
import os
import tempfile
from pathlib import Path

from ..errors import LimbeckError
from ..fingerprint import fingerprint
from . import tiny as shipped
from .files import quiet
from .hf import HF


def named(
    name: str, *, seed: int = 0, revision: str | None = None, dtype: str | None = None, device: str = "auto",
    batch_tokens: int | None = None,
) -> HF:  # fmt: skip
    """Makes `tiny/teacher`, which ships with limbeck, or `tiny/student`: untrained weights drawn from `seed`."""
    if name not in ("teacher", "student"):
        raise LimbeckError(f"tiny/{name} is not there; there are tiny/teacher and tiny/student.")
    path = shipped.TEACHER if name == "teacher" else _student(seed)
    return HF(path, name=f"tiny/{name}", revision=revision, dtype=dtype, device=device, batch_tokens=batch_tokens)


def _student(seed: int) -> Path:
    """The untrained student's directory in the user's cache, written once per seed and state of its code."""
    home = Path(shipped.__file__).parent
    sources = sorted([*home.glob("*.py"), *home.glob("*.json")])
    key = fingerprint([[f.name, f.read_bytes()] for f in sources])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck"
    out = cache / f"student-{seed}-{key[:16]}"
    if not out.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh, quiet():
            made = shipped.student(seed, Path(fresh) / "student")
            with contextlib.suppress(OSError):  # another process was first
                Path(made).rename(out)
    return out
