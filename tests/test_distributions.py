"""What is given away: the source distribution and the wheel, built here and looked into."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
from pathlib import Path

import pytest

from tests.process import environment

ROOT = Path(__file__).resolve().parent.parent
#: What a checkout may have besides its files.
OURS = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "data", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
)


def copy_checkout(target: Path) -> None:
    """The files that git knows; all files where this is no clone."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        shutil.copytree(ROOT, target, ignore=OURS)
        return
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).exists():  # deleted, and not committed yet
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist and the wheel, and the files that they were built from in ``checkout``."""
    directory = tmp_path_factory.mktemp("distributions")
    copy_checkout(directory / "checkout")
    files = files_in(directory / "checkout")
    secrets = directory / "checkout" / "conf" / "secrets"  # somebody's, for conf/compose.yaml: they are left out
    secrets.mkdir()
    (secrets / "database_url").write_text("secret")
    command = [sys.executable, "setup.py", "-q", "sdist", "-d", str(directory), "bdist_wheel", "-d", str(directory)]
    done = subprocess.run(command, cwd=directory / "checkout", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (directory / "files").write_text("\n".join(files))
    return directory


def files_in(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def unpacked(distributions: Path) -> Path:
    (archive,) = distributions.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(distributions / "source", filter="data")
    (root,) = (distributions / "source").iterdir()
    return root


def test_the_source_distribution_is_the_whole_checkout(distributions: Path, unpacked: Path) -> None:
    assert set((distributions / "files").read_text().splitlines()) - set(files_in(unpacked)) == set()
    assert os.access(unpacked / "bin" / "test", os.X_OK)


def test_the_source_distribution_can_run_its_tests(unpacked: Path) -> None:
    some = ["tests/test_architecture.py", "tests/records/test_times.py", "tests/test_packaging.py::test_metadata"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *some]
    done = subprocess.run(command, cwd=unpacked, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=unpacked, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_wheel_brings_what_is_in_conf_and_prints_the_sample(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    # An environment of its own: pip must not touch the one that the tests run in.
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    done = subprocess.run([*command, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert files_in(tmp_path / "venv" / "share" / "tornado-persist") == files_in(ROOT / "conf")
    (packages,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (packages / "required.pth").write_text(sysconfig.get_path("purelib"))  # what it requires is there
    done = subprocess.run(
        [python.with_name("persistd"), "config"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "conf" / "persistd.toml").read_text()


ALONE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"hypothesis", "xdist", "pytest_tornado", "httpx", "yaml", "schemathesis"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."]))
"""


def test_a_plugin_gets_the_contract_suite_with_pytest_alone(tmp_path: Path) -> None:
    for file in (ROOT / "docs" / "examples" / "keyvalue").glob("*.py"):
        shutil.copy(file, tmp_path)
    variables = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        cwd=tmp_path,
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\n[1-9]\d+ passed, \d+ skipped in ", done.stdout), done.stdout
