"""What the disk under a run directory promises: durable files, whose directory it is, whether others share it."""

import contextlib
import errno
import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Any

from .errors import LimbeckError

# File systems that other machines share: memory that two processes map there is not the same memory.
_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.davfs", "fuse.glusterfs", "fuse.juicefs",
    "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2",
    "orangefs", "smb3", "smbfs", "virtiofs",
}  # fmt: skip
# Of these, flock reaches the other machines; elsewhere, and with these mount options, only this one sees it.
_FLOCK_REACHES = {"nfs", "nfs4", "ceph", "gpfs", "lustre", "cifs", "smb3"}
_FLOCK_STAYS = {"nolock", "local_lock=all", "local_lock=flock", "localflock", "nobrl"}
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


def sync(path: Path) -> None:
    """Makes a file or a directory's entries durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def aside(path: Path) -> Path:
    """A free name beside a damaged file or directory: NAME.damaged, NAME.damaged-2, …"""
    names = (path.with_name(f"{path.name}.damaged{f'-{i}' if i > 1 else ''}") for i in range(1, 10_000))
    return next(name for name in names if not name.exists())


def mount(path: Path) -> tuple[str, set[str]]:
    """The type and options of the file system that holds a path; ("", {}) where the system keeps no such list."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return "", set()
    here, found, longest = path.resolve(), ("", set[str]()), -1
    for line in lines:
        _, where, kind, options, *_ = line.split(" ")
        where = where.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        if here.is_relative_to(where) and len(where) >= longest:  # of two at one place, the later one covers
            found, longest = (kind, set(options.split(","))), len(where)
    return found


def network(path: Path) -> str | None:
    """The kind of the network file system that a path lies on; None on a disk of this machine."""
    kind, _ = mount(path)
    return kind if kind in _NETWORK else None


def keeps_locks(directory: Path) -> bool:
    """Whether byte-range locks, which SQLite takes, work in a directory at all."""
    probe = directory / ".locks"
    try:
        with probe.open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError as error:
        return error.errno in _HELD
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class Lock:
    """A run directory that is this process's own until `close`."""

    def __init__(self, file: IO[str] | None, owner: Path | None):
        self._file, self._owner = file, owner

    def close(self) -> None:
        if self._owner is not None:
            self._owner.unlink(missing_ok=True)
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def lock(directory: Path) -> Lock:
    """Takes a run directory for this process; raises LimbeckError where another process has it, on any machine.

    flock frees itself when its process dies. Where it does not work, or does not reach other machines, a file
    `.lock.owner` that only one process can create says who is there.
    """
    held: IO[str] | None = (directory / ".lock").open("a+")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except OSError as error:
        held.seek(0)  # type: ignore[union-attr]
        holder = held.read().strip() or "unknown"  # type: ignore[union-attr]
        held.close()  # type: ignore[union-attr]
        if error.errno in _HELD:
            raise _taken(directory, holder) from None
        held = None
    kind, options = mount(directory)
    local = kind not in _NETWORK or (kind in _FLOCK_REACHES and not options & _FLOCK_STAYS)
    if held is not None:
        held.truncate(0)
        held.write(f"{os.getpid()}")
        held.flush()
        if local:
            return Lock(held, None)
    try:
        return Lock(held, _own(directory))
    except BaseException:
        if held is not None:
            held.close()
        raise


def _own(directory: Path) -> Path:
    """Creates `.lock.owner`, taking over that of a dead process of this machine."""
    owner, host = directory / ".lock.owner", socket.gethostname()
    for _ in range(2):
        try:
            fd = os.open(owner, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            there, _, pid = owner.read_text().partition(" ")
            if there != host or not pid.isdigit() or _alive(int(pid)):
                away = f" on {there}; if that one is gone, remove {owner}" if there != host else ""
                raise _taken(directory, f"{pid or 'unknown'}{away}") from None
            owner.unlink(missing_ok=True)
            continue
        with os.fdopen(fd, "w") as file:
            file.write(f"{host} {os.getpid()}")
        return owner
    raise _taken(directory, "unknown")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _taken(directory: Path, holder: str) -> LimbeckError:
    return LimbeckError(
        f"another process (pid {holder}) is working in {directory}; wait for it, or choose another directory."
    )
