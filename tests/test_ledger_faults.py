"""What reaches the disk before a call counts as kept, seen from outside by strace; and what a failing disk does."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from limbeck.ledger import Ledger

ROOT = Path(__file__).parents[1]
CALLS = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2"
CHILD = """
import os, sys
from pathlib import Path
from limbeck.errors import LimbeckError
from limbeck.ledger import Ledger
from tests.test_ledger import LARGE, record
try:
    ledger = Ledger(Path(sys.argv[1]) / "ledger")
    for key in sys.argv[2].split(","):
        ledger.put(record(key, reply={"text": key, **LARGE}, blobs={}))
        ledger.flush()
        os.write(1, f"kept {key}\\n".encode())
    ledger.close()
except LimbeckError as error:
    os.write(1, f"error {error}\\n".encode())
"""


def traced(code, *arguments, log, only=(), inject=None):
    """Runs Python under strace; returns its output. `only`: the files whose calls are seen, and fail as injected."""
    command = ["strace", "-f", "-y", "-s", "80", "-o", str(log), "-e", f"trace={CALLS}"]
    command += [part for path in only for part in ("-P", str(path))]
    command += ["-e", f"inject={inject}"] if inject else []
    done = subprocess.run(
        [*command, sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT
    )
    assert not done.returncode, done.stderr
    return done.stdout.splitlines()


def can_trace():
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-e", "trace=none", "true"], capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_trace(), reason="strace is missing, or may not trace here")


def steps(log, **patterns):
    """The named steps of a trace, in order, each as often as it happened."""
    found = []
    for line in log.read_text().splitlines():
        found += [name for name, pattern in patterns.items() if re.search(pattern, line)]
    return found


def test_a_call_is_kept_only_after_its_pack_its_directory_and_the_log_are_on_the_disk(tmp_path):
    Ledger(tmp_path / "ledger").close()
    said = traced(CHILD, tmp_path, "first,second", log=tmp_path / "log")
    assert said == ["kept first", "kept second"]
    order = steps(
        tmp_path / "log",
        pack=r"\bwrite\(\d+<.*/blobs/\.writing>",
        pack_synced=r"\bfsync\(\d+<.*/blobs/\.writing>\) = 0",
        named=r"rename.*/blobs/\.writing.*\.pack\"",
        directory_synced=r"\bfsync\(\d+<.*/ledger/blobs>\) = 0",
        wal=r"pwrite64\(\d+<.*/calls\.sqlite-wal>",
        wal_synced=r"fdatasync\(\d+<.*/calls\.sqlite-wal>\) = 0",
        kept=r"write\(1<.*\"kept",
    )
    once = ["pack", "pack_synced", "named", "directory_synced", "wal", "wal_synced", "kept"]
    squeezed = [s for i, s in enumerate(order) if i == 0 or order[i - 1] != s]
    at = squeezed.index("kept") + 1
    header = ["wal", "wal_synced"]  # the first commit writes the log's head before its frames
    assert squeezed[:at] in (once, [*once[:4], *header, *once[4:]])
    assert squeezed[at : at + 7] == once


STAGE = """
import json, os, sys
from pathlib import Path
from limbeck.store import Store, Writer
store = Store(Path(sys.argv[1]) / "stages")
with store.scratch() as scratch:
    writer = Writer(scratch / "rows.parquet")
    writer.add({"prompt": "one"})
    writer.close()
    (scratch / "meta.json").write_text(json.dumps({"op": "ask"}))
    store.commit(scratch, "ask-1")
os.write(1, b"committed")
"""


def test_a_stage_gets_its_name_only_after_its_files_are_on_the_disk(tmp_path):
    assert traced(STAGE, tmp_path, log=tmp_path / "log") == ["committed"]
    order = steps(
        tmp_path / "log",
        file=r"\bfsync\(\d+<.*/stages/\.tmp-[^/]+/[^/]+>\) = 0",
        scratch=r"\bfsync\(\d+<.*/stages/\.tmp-[^/]+>\) = 0",
        renamed=r"rename.*/stages/ask-1\"",
        parent=r"\bfsync\(\d+<.*/stages>\) = 0",
        committed=r"write\(1<.*\"committed",
    )
    assert set(order[:-4]) == {"file"} and len(order) >= 7
    assert order[-4:] == ["scratch", "renamed", "parent", "committed"]


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize(
    ("file", "fault"),
    [("calls.sqlite-wal", "fdatasync:error=EIO"), ("calls.sqlite-wal", "pwrite64:error=ENOSPC"),
     ("blobs/.writing", "fsync:error=EIO"), ("blobs/.writing", "write:error=ENOSPC")],
)  # fmt: skip
def test_a_failing_disk_costs_no_call_that_was_kept(tmp_path, file, fault, after):
    Ledger(tmp_path / "ledger").close()
    keys = ["a", "b", "c", "d"]
    when = after if "pwrite" not in fault else 9 * after  # a commit is some ten writes to the log
    only = [tmp_path / "ledger" / file]
    said = traced(CHILD, tmp_path, ",".join(keys), log=tmp_path / "log", only=only, inject=f"{fault}:when={when}+")
    assert "INJECTED" in (tmp_path / "log").read_text()
    kept = [line.removeprefix("kept ") for line in said if line.startswith("kept")]
    (error,) = [line for line in said if not line.startswith("kept")]
    assert error.startswith("error the ledger") and len(kept) < len(keys)
    reader = Ledger(tmp_path / "ledger", readonly=True)
    assert {k: reader.call(k)["reply"]["text"] for k in kept} == {k: k for k in kept}
    reader.close()
    again = traced(CHILD, tmp_path, ",".join(keys), log=tmp_path / "log")
    assert again == [f"kept {k}" for k in keys]
    whole = Ledger(tmp_path / "ledger")
    assert json.dumps(sorted(whole.replies(keys, whole=True))) == json.dumps(keys)
    whole.close()
