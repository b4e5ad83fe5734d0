"""What a training keeps on disk while it works, and the one rename that finishes it.

The Trainer writes its checkpoints in place, and a kill may land inside: one counts only with its mark, written last,
which names every file and its size. The one before is removed only after that.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from ..store import sync

MARK = "complete.json"


def part(path: Path) -> Path:
    """Where the model `path` is made."""
    return path.with_name(path.name + ".part")


def mark(checkpoint: Path, keep: Path | None = None) -> None:
    """Makes a checkpoint count, durably, and removes those before it, but for the one to `keep`."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    for path in files:
        sync(path)
    name = checkpoint / (MARK + ".tmp")
    name.write_text(json.dumps({str(path.relative_to(checkpoint)): path.stat().st_size for path in files}))
    sync(name)
    name.rename(checkpoint / MARK)
    sync(checkpoint)
    for other in checkpoint.parent.glob("checkpoint-*"):
        if other not in (checkpoint, keep):
            remove(other)


def newest(folder: Path) -> Path | None:
    """The checkpoint to continue from. Removes what does not count: kills leave halves behind."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for path in found:
        if not complete(path):
            remove(path)
    return next((path for path in reversed(found) if path.exists()), None)


def complete(checkpoint: Path) -> bool:
    """Whether every file that the mark names is there, whole."""
    try:
        sizes = json.loads((checkpoint / MARK).read_text())
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def remove(path: Path) -> None:
    """Removes a directory, its mark first: half of it must not count."""
    (path / MARK).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def commit(scratch: Path, final: Path) -> None:
    """Makes a finished model durable and gives it its name, in one rename."""
    for path in scratch.rglob("*"):
        sync(path)
    sync(scratch)
    scratch.rename(final)
    sync(final.parent)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl; a kill may have left half a line at the end, which is dropped."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
