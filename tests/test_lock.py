"""``requirements.lock``: it has what ``setup.py`` asks for, in a version that it allows, each with its hashes."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "requirements.lock").read_text()
LOCKED = {canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+) ", TEXT, re.MULTILINE)}


def test_the_lock_file_satisfies_the_package() -> None:
    wanted = [Requirement(line) for line in requires("tornado-persist") or ()]
    needed = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    assert len(needed) > 10
    for one in needed:
        version = LOCKED[canonicalize_name(one.name)]
        assert one.specifier.contains(version), f"{one} is not {version}"


def test_no_version_with_a_known_weakness_is_allowed() -> None:
    weak = {"tornado": "6.5.9", "pydantic-settings": "2.14.1", "pymysql": "1.1.0", "cryptography": "49"}
    wanted = {canonicalize_name(one.name): one for one in map(Requirement, requires("tornado-persist") or ())}
    for name, version in weak.items():
        assert not wanted[canonicalize_name(name)].specifier.contains(version), name


def test_what_the_locked_packages_need_is_locked_too() -> None:
    for name in LOCKED:
        for line in requires(name) or ():
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                assert canonicalize_name(one.name) in LOCKED, f"{name} needs {one}"


def test_every_version_has_hashes_and_no_host_is_named() -> None:
    entries = re.split(r"^(?=\w)", TEXT, flags=re.MULTILINE)[1:]
    assert len(entries) == len(LOCKED)
    assert all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in TEXT


def test_the_container_is_built_from_it() -> None:
    assert "--require-hashes -r requirements.lock" in (ROOT / "Dockerfile").read_text()
    assert "!requirements.lock" in (ROOT / ".dockerignore").read_text().splitlines()
