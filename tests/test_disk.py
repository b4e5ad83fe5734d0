"""A run directory belongs to one process, on local disks and on those that other machines share."""

import errno
import fcntl
import os
import socket
import subprocess

import pytest

from limbeck import disk
from limbeck.errors import LimbeckError


@pytest.fixture
def share(monkeypatch):
    """Makes every path look like one of a network file system."""

    def on(kind, *options):
        monkeypatch.setattr(disk, "mount", lambda path: (kind, set(options)))

    return on


def test_the_mount_that_holds_a_path_is_found(tmp_path):
    assert disk.mount(tmp_path)[0] and disk.mount(tmp_path) == disk.mount(tmp_path / "not" / "there")
    assert disk.mount(disk.Path("/proc/self"))[0] == "proc"
    assert disk.network(tmp_path) is None


@pytest.mark.parametrize(("kind", "shared"), [("nfs4", True), ("fuse.sshfs", True), ("lustre", True), ("ext4", False)])
def test_network_file_systems_are_known_by_their_type(tmp_path, share, kind, shared):
    share(kind)
    assert disk.network(tmp_path) == (kind if shared else None)


def test_a_directory_is_free_again_when_its_lock_is_closed(tmp_path):
    with disk.lock(tmp_path), pytest.raises(LimbeckError, match=f"pid {os.getpid()}.*is working in"):
        disk.lock(tmp_path)
    disk.lock(tmp_path).close()


@pytest.mark.parametrize("mount", [("fuse.sshfs",), ("nfs", "local_lock=all"), ("lustre", "localflock")])
def test_where_locks_stay_on_one_machine_a_process_of_another_is_refused(tmp_path, share, mount):
    share(*mount)
    held = disk.lock(tmp_path)
    assert (tmp_path / ".lock.owner").read_text() == f"{socket.gethostname()} {os.getpid()}"
    held.close()
    (tmp_path / ".lock.owner").write_text("elsewhere 17")
    with pytest.raises(LimbeckError, match="pid 17 on elsewhere; if that one is gone, remove .*lock.owner"):
        disk.lock(tmp_path)


def test_where_locks_reach_other_machines_a_killed_process_leaves_nothing_behind(tmp_path, share):
    share("nfs4", "vers=4.2")
    disk.lock(tmp_path).close()
    assert not (tmp_path / ".lock.owner").exists()


def test_without_flock_the_owner_file_decides_and_a_dead_owner_is_replaced(tmp_path, share, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    share("lustre")
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with disk.lock(tmp_path), pytest.raises(LimbeckError, match=f"pid {os.getpid()}"):
        disk.lock(tmp_path)
    gone = subprocess.Popen(["true"])
    gone.wait()
    (tmp_path / ".lock.owner").write_text(f"{socket.gethostname()} {gone.pid}")
    disk.lock(tmp_path).close()


def test_byte_range_locks_are_probed(tmp_path, monkeypatch):
    assert disk.keeps_locks(tmp_path)

    def unsupported(*_):
        raise OSError(errno.EOPNOTSUPP, "not here")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    assert not disk.keeps_locks(tmp_path)
    assert not list(tmp_path.iterdir())


def test_damaged_things_get_names_that_are_free(tmp_path):
    for name in ("stage.damaged", "stage.damaged-2"):
        assert disk.aside(tmp_path / "stage").name == name
        (tmp_path / name).mkdir()
