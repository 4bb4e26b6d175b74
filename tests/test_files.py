"""The data directory: who may read it, who may have it, and what another user has planted in it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import Persistd, persistd
from tests.rows import session, task
from tornado_persist.errors import ConfigError, StartError
from tornado_persist.files import DataDir, open_private

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
SOMEBODY = 12345


# Who may read it


@pytest.mark.parametrize("umask", ["0", "022", "077"])
@pytest.mark.parametrize("sink", ["sqlite", "jsonl"])
def test_others_can_read_nothing_under_any_umask(tmp_path: Path, umask: str, sink: str) -> None:
    prefix = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
    with Persistd(tmp_path, f'sink = "{sink}"\n', log='file = "own.log"', prefix=prefix) as service:
        service.post("session", session("s1"))
        service.post("task", task("a"))
        service.flush()
        service.post("task", task("b"))
        found = [service.data_dir, *service.data_dir.rglob("*")]
        assert {"lock", "persistd.pid", "own.log", "journal", "cursor"} <= {path.name for path in found}
        for path in found:
            mode = path.stat().st_mode
            assert not mode & (0o027 if path.is_dir() else 0o137), f"{path}: {stat.filemode(mode)}"


def test_the_daemons_log_cannot_be_read_by_others(tmp_path: Path) -> None:
    DataDir(tmp_path / "data").make()
    before = os.umask(0)
    try:
        DataDir(tmp_path / "data").open_log().close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "data" / "persistd.log").stat().st_mode) == 0o640


# Who may have it


@pytest.fixture
def second_mount(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A directory, and the same through a file system that passes on locks of files, as NFS does."""
    if not shutil.which("bindfs") or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("bindfs, which mounts a directory a second time, is not installed or has no /dev/fuse")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(0o750)
    there.mkdir()
    mount = ["bindfs", "--multithreaded", "--enable-lock-forwarding", str(here), str(there)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"bindfs may not mount here: {done.stderr.strip()}")
    yield here, there
    subprocess.run(["fusermount", "-u", str(there)], check=True)


def test_a_second_mount_of_the_directory_is_locked_too(second_mount: tuple[Path, Path], tmp_path: Path) -> None:
    here, there = second_mount
    holder = DataDir(here)
    holder.lock()
    try:
        assert DataDir(there).locked()
        assert DataDir(there).holder() is None  # which is not seen from there, so it is never signalled
        done = persistd("run", cwd=tmp_path, PERSISTD_DATA_DIR=str(there), PERSISTD_SERVER__PORT="0")
        problem = f"persistd: data_dir {there} is in use by another persistd\n"
        assert (done.returncode, done.stderr) == (1, problem)
    finally:
        holder.unlock()
    other = DataDir(there)
    other.lock()
    try:
        assert holder.locked()
    finally:
        other.unlock()


def test_an_error_of_the_lock_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data_dir = DataDir(tmp_path)

    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(StartError, match=r"cannot be locked: No locks available$"):
        data_dir.lock()
    data_dir.lock_file.touch()
    with pytest.raises(ConfigError, match=r"cannot be read: its lock: No locks available$"):
        data_dir.locked()


def test_a_directory_that_all_can_open_cannot_be_locked_by_them(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path)
    tmp_path.chmod(0o755)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        assert not data_dir.locked()
        data_dir.lock()
        assert DataDir(tmp_path).locked()
        data_dir.unlock()
    finally:
        os.close(fd)


# What another user has planted in it


@needs_root
@pytest.mark.parametrize("command", ["run", "start", "check"])
@pytest.mark.parametrize(
    "name", ["lock", "persistd.pid", "persistd.log", "persist.db", "persist.db-wal", "rejected.jsonl", "journal/cursor"]
)
def test_root_follows_no_link_that_another_user_can_have_made(tmp_path: Path, name: str, command: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = tmp_path / "data" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    os.chown(tmp_path / "data", SOMEBODY, SOMEBODY)
    done = persistd(command, cwd=tmp_path, PERSISTD_SERVER__PORT="0")
    words = "a symbolic link in a directory that another user can write to is not followed"
    problem = f"persistd: data_dir: {link}: {words}; remove it, or run as its user\n"
    assert (done.returncode, done.stderr) == (2, problem)
    assert victim.read_text() == "precious"
    assert {path.name for path in (tmp_path / "data").iterdir()} == {Path(name).parts[0]}


@needs_root
def test_a_link_that_is_planted_after_the_look_is_not_followed(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    data_dir.make()
    os.chown(data_dir.path, SOMEBODY, SOMEBODY)
    for path in (data_dir.lock_file, data_dir.pid_file, data_dir.log_file):
        path.symlink_to(tmp_path / "victim")
    with pytest.raises(StartError, match="a symbolic link in a directory"):
        data_dir.lock()
    with pytest.raises(OSError, match="a symbolic link in a directory"):
        data_dir.open_log()
    data_dir.write_pid()
    assert not (tmp_path / "victim").exists()


def test_a_link_in_a_directory_of_our_own_is_followed(tmp_path: Path) -> None:
    data_dir = DataDir(tmp_path / "data")
    data_dir.make()
    data_dir.log_file.symlink_to(tmp_path / "elsewhere.log")
    data_dir.make()
    data_dir.open_log().close()
    assert (tmp_path / "elsewhere.log").exists()
    data_dir.path.chmod(0o777)
    with pytest.raises(OSError, match="a symbolic link in a directory"):
        open_private(data_dir.log_file, os.O_WRONLY)
