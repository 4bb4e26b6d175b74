"""The metadata in setup.py, and the scripts that make the environment."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import tornado_persist
from tests import tools

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = (
    "bin/persistd",
    "bin/test",
    "bin/_environment",
    ".ci/run",
    "conf/postgres-init.sh",
    "conf/postgres-is-primary",
    "bench/run",
)


# setup.py


def run_setup(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the file hands to setuptools, which an environment does not need to hold."""
    given: dict[str, Any] = {}
    fake = types.ModuleType("setuptools")
    monkeypatch.setattr(fake, "setup", given.update, raising=False)
    monkeypatch.setattr(fake, "find_packages", lambda **options: options["include"], raising=False)
    monkeypatch.setitem(sys.modules, "setuptools", fake)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__file__": str(path), "__name__": "__main__"})
    return given


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return run_setup(ROOT / "setup.py", monkeypatch)


def test_metadata(metadata: dict[str, Any]) -> None:
    assert metadata["name"] == "tornado-persist"
    assert metadata["version"] == tornado_persist.__version__
    assert metadata["python_requires"] == ">=3.11"
    assert metadata["entry_points"]["console_scripts"] == ["persistd = tornado_persist.cli:main"]
    assert metadata["package_data"] == {
        "tornado_persist": ["py.typed", "web/assets/docs/*", "web/assets/dashboard/*", "web/assets/dashboard/uplot/*"]
    }
    assert (ROOT / "tornado_persist" / "py.typed").exists()


def test_a_missing_readme_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "tornado_persist").mkdir()
    (tmp_path / "tornado_persist" / "__init__.py").write_text('"""Doc."""\n\n__version__ = "9.8.7"\n')
    given = run_setup(tmp_path / "setup.py", monkeypatch)
    assert given["version"] == "9.8.7"
    assert given["long_description"] == ""


def test_extras(metadata: dict[str, Any]) -> None:
    extras = metadata["extras_require"]
    assert set(extras) == {"testing", "test", "dev"}
    assert set(extras["testing"]) < set(extras["test"]) < set(extras["dev"])
    # The service itself needs nothing that only its tests need.
    needed = {Requirement(line).name for line in metadata["install_requires"]}
    assert needed.isdisjoint(Requirement(line).name for line in extras["dev"])


def test_every_requirement_has_a_lower_bound_that_is_met_here(metadata: dict[str, Any]) -> None:
    for line in [*metadata["install_requires"], *metadata["extras_require"]["test"]]:
        requirement = Requirement(line)
        assert ">=" in {specifier.operator for specifier in requirement.specifier}, line
        assert requirement.specifier.contains(importlib.metadata.version(requirement.name)), line


def test_every_import_is_required_and_every_requirement_imported(metadata: dict[str, Any]) -> None:
    owners = importlib.metadata.packages_distributions()
    required = {Requirement(line).name.lower().replace("-", "_") for line in metadata["install_requires"]}
    # It comes with pydantic, in the one version that fits it.
    required.add("pydantic_core")
    imported: set[str] = set()
    # The contract suite for authors of sinks, which runs in their pytest.
    required_by_testing = required | {"pytest", "hypothesis"}
    for path in (ROOT / "tornado_persist").rglob("*.py"):
        allowed = required_by_testing if path.parent.name == "testing" else required
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            else:
                continue
            for name in {module.partition(".")[0] for module in modules} - {"tornado_persist"}:
                if name not in sys.stdlib_module_names:
                    distributions = {owner.lower().replace("-", "_") for owner in owners.get(name, [name])}
                    assert distributions & allowed, f"{path.name} imports {name}"
                    imported |= distributions
    assert required - {"pydantic_core"} <= imported


def test_the_benchmark_has_no_need_of_the_suites_packages() -> None:
    """bench/run starts the suite's servers in an environment of its own, which has none of these."""
    block = "import sys; sys.modules |= dict.fromkeys(['pytest', 'hypothesis', 'httpx'])"
    subprocess.run([sys.executable, "-c", f"{block}; import bench.__main__"], cwd=ROOT, check=True)


# The scripts


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_pass_shellcheck(script: str) -> None:
    done = subprocess.run(
        [tools.installed("shellcheck"), "-x", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["bin/persistd", "bin/test", ".ci/run"])
def test_scripts_can_be_run(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)


# In a checkout of their own, with a python3 that makes the environment in no time and takes down what it is asked.
PYTHON = """\
#!/bin/sh
case "$*" in
*"-m venv"*)
    echo venv >>"$LOG"
    for directory; do :; done
    rm -rf "$directory"
    mkdir -p "$directory/bin"
    cp "$0" "$directory/bin/python"
    ;;
*"-m pip install"*)
    echo "pip ${*##*/}" >>"$LOG"
    sleep 0.2
    if [ -e "$FAIL" ]; then
        echo "no such package"
        exit 1
    fi
    printf '#!/bin/sh\\npwd\\nprintf "<%%s>" "$@"\\nexit 3\\n' >"${0%/*}/persistd"
    chmod +x "${0%/*}/persistd"
    ;;
*fcntl*)
    exec "$REAL_PYTHON" "$@"
    ;;
esac
"""


class Checkout:
    def __init__(self, directory: Path) -> None:
        self.root = directory / "check out"
        self.root.mkdir()
        shutil.copytree(ROOT / "bin", self.root / "bin")
        (self.root / "setup.py").write_text("one\n")
        (self.root / "tornado_persist").mkdir()
        (self.root / "tornado_persist" / "__init__.py").write_text("")
        self.log, self.fail = directory / "log", directory / "fail"
        self.path = directory / "path"
        self.path.mkdir()
        for name in ("sh", "dirname", "readlink", "cat", "cmp", "rm", "mkdir", "cp", "sleep", "chmod"):
            program = shutil.which(name)
            assert program
            (self.path / name).symlink_to(program)
        self.elsewhere = directory / "elsewhere"
        self.elsewhere.mkdir()
        self.python = self.path / "python3"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    @property
    def environment(self) -> dict[str, str]:
        # Neither HOME nor anything else of ours.
        return {"PATH": str(self.path), "LOG": str(self.log), "FAIL": str(self.fail), "REAL_PYTHON": sys.executable}

    def start(self, *arguments: str, script: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [script or self.root / "bin" / "persistd", *arguments],
            cwd=self.elsewhere,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, script: Path | None = None) -> tuple[int, str, str]:
        process = self.start(*arguments, script=script)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def logged(self) -> list[str]:
        """What Python was asked for since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_the_first_run_installs_and_the_second_only_runs(checkout: Checkout) -> None:
    # The exit status is the service's; arguments arrive whole, and the working directory stays the caller's.
    assert checkout.run("-c", "a b") == (
        3,
        f"{checkout.elsewhere}\n<-c><a b>",
        "persistd: making .venv and installing tornado-persist into it\n",
    )
    assert checkout.logged() == ["venv", "pip check out"]
    assert checkout.run("status") == (3, f"{checkout.elsewhere}\n<status>", "")
    assert checkout.logged() == []


def test_through_symlinks(checkout: Checkout) -> None:
    (checkout.elsewhere / "one").symlink_to("../check out/bin/persistd")
    (checkout.elsewhere / "two").symlink_to("one")
    assert checkout.run(script=checkout.elsewhere / "two")[0] == 3
    assert (checkout.root / ".venv").is_dir()


@pytest.mark.parametrize("changed", ["setup.py", "tornado_persist/__init__.py"])
def test_a_changed_setup_is_installed_again(checkout: Checkout, changed: str) -> None:
    checkout.run()
    checkout.logged()
    (checkout.root / changed).write_text("another\n")
    assert checkout.run()[2] == "persistd: installing tornado-persist into .venv\n"
    assert checkout.logged() == ["pip check out"]


def test_a_moved_checkout_is_installed_again(checkout: Checkout) -> None:
    checkout.run()
    checkout.logged()
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    assert checkout.run()[0] == 3
    assert checkout.logged() == ["pip moved"]


def test_an_install_that_was_cut_short_is_done_again(checkout: Checkout) -> None:
    process = checkout.start()
    while not checkout.log.exists() or "pip" not in checkout.log.read_text():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    checkout.logged()
    assert checkout.run()[0] == 3
    assert checkout.logged() == ["venv", "pip check out"]


def test_the_failure_of_pip_is_shown(checkout: Checkout) -> None:
    checkout.fail.touch()
    status, out, err = checkout.run()
    assert (status, out) == (1, "")
    assert err.splitlines() == [
        "persistd: making .venv and installing tornado-persist into it",
        "no such package",
        "persistd: installing tornado-persist failed; pip's message is above",
    ]
    checkout.fail.unlink()
    assert checkout.run()[0] == 3


def test_several_at_once_install_once(checkout: Checkout) -> None:
    processes = [checkout.start() for _ in range(4)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [3] * 4
    assert sum(bool(err) for _out, err in results) == 1
    assert checkout.logged() == ["venv", "pip check out"]


def test_one_line_without_a_fitting_python(checkout: Checkout) -> None:
    checkout.python.unlink()
    status, out, err = checkout.run()
    assert (status, out) == (1, "")
    assert err.startswith("persistd: no Python 3.11 or later was found")
    assert err.count("\n") == 1
    checkout.python.write_text(textwrap.dedent('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1 ;; esac\n'))
    checkout.python.chmod(0o755)
    status, out, err = checkout.run()
    assert (status, out) == (1, "")
    assert "python3-venv" in err
    assert err.count("\n") == 1


def test_the_extras_contain_one_another(checkout: Checkout) -> None:
    def environment(what: str) -> list[str]:
        script = f'root=$1; . "$root/bin/_environment"; environment {what}'
        subprocess.run(["sh", "-c", script, "sh", checkout.root], env=checkout.environment, check=True)
        return checkout.logged()

    assert environment("test") == ["venv", "pip check out[test]"]
    assert environment("base") == []
    assert environment("dev") == ["pip check out[dev]"]
    assert environment("test") == []
    assert environment("base") == []
