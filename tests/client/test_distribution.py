"""The client's distribution: it works alone, beside the service, and with editable installs of either."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.process import environment

ROOT = Path(__file__).resolve().parent.parent.parent
CLIENT = """
import sys, tornado_persist.client
from tornado_persist.client import Client
assert not {"tornado", "pydantic", "msgspec"} & set(sys.modules)
"""
BOTH = "import tornado_persist, tornado_persist.cli, tornado_persist.client; assert tornado_persist.__version__"


def test_it_asks_nothing_that_the_oldest_python_does_not_have() -> None:
    sources = ROOT / "clients" / "python" / "src"
    (oldest,) = re.findall(r'python_requires=">=(.+)"', (sources.parent / "setup.py").read_text())
    command = [
        str(Path(sys.executable).with_name("vermin")),
        f"-t={oldest}-",
        "--violations",
        "--no-tips",
        str(sources),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of both, and their wheels."""
    directory = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    shutil.copytree(ROOT / "clients" / "python", directory / "client", ignore=ignored)
    for name in ("tornado_persist", "conf"):
        shutil.copytree(ROOT / name, directory / "service" / name, ignore=ignored)
    for name in ("setup.py", "README.rst", "LICENSE"):
        shutil.copy(ROOT / name, directory / "service")
    for which in ("client", "service"):
        command = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(directory / "wheels")]
        done = subprocess.run(command, cwd=directory / which, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return directory


def test_both_wheels_have_the_licence(sources: Path) -> None:
    wheels = sorted((sources / "wheels").glob("*.whl"))
    assert len(wheels) == 2
    for wheel in wheels:
        with ZipFile(wheel) as file:
            (licence,) = [name for name in file.namelist() if name.endswith(".dist-info/LICENSE")]
            assert file.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize(
    ("client", "service"),
    [
        ("wheel", ""),
        ("editable", ""),
        ("wheel", "wheel"),
        ("wheel", "editable"),
        ("editable", "wheel"),
        ("editable",) * 2,
    ],
)
def test_the_import_holds(sources: Path, tmp_path: Path, client: str, service: str) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("*/site-packages")
    (packages / "required.pth").write_text(sysconfig.get_path("purelib"))  # what they require is there
    for which, how in (("service", service), ("client", client)):
        if not how:
            continue
        name = "tornado_persist_client" if which == "client" else "tornado_persist"
        (wheel,) = (sources / "wheels").glob(f"{name}-*.whl")
        what = [str(wheel)] if how == "wheel" else ["--no-build-isolation", "--editable", str(sources / which)]
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", *what]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    for script in (CLIENT, BOTH) if service else (CLIENT,):
        done = subprocess.run(
            [python, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
