"""The programs that the suite needs and that pip cannot install: where they are found, and how they are installed.

``bin/test`` runs this as a script before pytest: it installs what is missing where that is allowed, else it ends with
one line that names it. Add a row to ``TOOLS`` for another program. Only the standard library is imported, and neither
this nor installing leaves a service behind (see ``_apt_get``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


class ToolMissing(Exception):
    """A program that the suite needs is not on this machine."""


@dataclass(frozen=True)
class Tool:
    """One needed program."""

    #: The hint for installing it by hand.
    title: str
    #: All of them have to be there.
    programs: tuple[str, ...]
    #: For each package manager the sets of packages that hold it, newest naming first; the first known set is taken.
    packages: Mapping[str, tuple[tuple[str, ...], ...]] = field(default_factory=dict)
    #: What Debian's packages would have systemd start, now and at every boot.
    units: tuple[str, ...] = ()


#: Linux alone has it.
STRACE: tuple[Tool, ...] = (
    (Tool("strace", ("strace",), dict.fromkeys(("apt-get", "dnf", "apk"), (("strace",),))),)
    if sys.platform == "linux"
    else ()
)

#: The programs that look at a unit file; they need no systemd that runs. Only some systems have it.
SYSTEMD: tuple[Tool, ...] = (
    (Tool("systemd", ("systemd-analyze",), {"apt-get": (("systemd",),), "dnf": (("systemd",),)}),)
    if shutil.which("apt-get") or shutil.which("dnf")
    else ()
)

#: A second mount of a directory, which passes on locks as network file systems do.
BINDFS: tuple[Tool, ...] = (
    (Tool("bindfs", ("bindfs", "fusermount"), {"apt-get": (("bindfs",),)}),)
    if shutil.which("apt-get") and os.access("/dev/fuse", os.W_OK)
    else ()
)

#: State transfer between the nodes of a MariaDB cluster. A package has the script, and the library beside it.
GALERA: tuple[Tool, ...] = (
    (
        Tool(
            "Galera",
            ("wsrep_sst_rsync", "rsync", "lsof"),
            {"apt-get": (("galera-4", "mariadb-server", "rsync", "lsof"),)},
            ("mariadb.service",),
        ),
    )
    if shutil.which("apt-get")
    else ()
)

#: A manager of PostgreSQL servers, and where it keeps what they agree on. Only the long form of the suite wants it.
PATRONI = ("patroni", "patronictl", "etcd")
LONG: tuple[Tool, ...] = (
    (Tool("Patroni", PATRONI, {"apt-get": (("patroni", "etcd-server"),)}, ("patroni.service", "etcd.service")),)
    if shutil.which("apt-get")
    else ()
)

TOOLS: tuple[Tool, ...] = (
    Tool(
        "PostgreSQL server",
        ("initdb", "postgres", "pg_basebackup", "psql"),
        {
            "apt-get": (("postgresql",),),
            "dnf": (("postgresql-server",),),
            "apk": (("postgresql",),),
            "brew": (("postgresql@17",),),
        },
    ),
    Tool(
        "MariaDB server",
        ("mariadbd", "mariadb-install-db", "my_print_defaults"),
        {
            # The core packages are the programs alone: no service, no system user, no data directory.
            "apt-get": (
                ("mariadb-server-core", "mariadb-client-core"),
                ("mariadb-server-core-10.6", "mariadb-client-core-10.6"),
            ),
            "dnf": (("mariadb-server",),),
            "apk": (("mariadb", "mariadb-common", "mariadb-client"),),
            "brew": (("mariadb",),),
        },
    ),
    Tool(
        "PgBouncer",
        ("pgbouncer",),
        dict.fromkeys(("apt-get", "dnf", "apk", "brew"), (("pgbouncer",),)),
        ("pgbouncer.service",),
    ),
    Tool(
        "nginx",
        ("nginx",),
        {"apt-get": (("nginx-light",), ("nginx",)), **dict.fromkeys(("dnf", "apk", "brew"), (("nginx",),))},
        ("nginx.service",),
    ),
    Tool(
        "HAProxy",
        ("haproxy",),
        dict.fromkeys(("apt-get", "dnf", "apk", "brew"), (("haproxy",),)),
        ("haproxy.service",),
    ),
    Tool(
        "logrotate",
        ("logrotate",),
        dict.fromkeys(("apt-get", "dnf", "apk", "brew"), (("logrotate",),)),
        ("logrotate.timer",),
    ),
    Tool("zsh", ("zsh",), dict.fromkeys(("apt-get", "dnf", "apk", "brew"), (("zsh",),))),
    *STRACE,
    Tool(
        "faketime",
        ("faketime",),
        {"apt-get": (("faketime",),), **dict.fromkeys(("dnf", "apk", "brew"), (("libfaketime",),))},
    ),
    Tool(
        "Prometheus's promtool",
        ("promtool",),
        {
            "apt-get": (("prometheus",),),
            "dnf": (("golang-github-prometheus",),),
            "apk": (("prometheus",),),
            "brew": (("prometheus",),),
        },
        ("prometheus.service",),  # of its package promtool alone is wanted
    ),
    Tool("Chromium", ("chromium",), dict.fromkeys(("apt-get", "dnf", "apk", "brew"), (("chromium",),))),
    *SYSTEMD,
    *BINDFS,
    *GALERA,
)

#: Searched after ``PATH``. Servers are often installed where only their service looks; the highest version wins.
DIRECTORIES: tuple[str, ...] = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/usr/local/pgsql/bin",
    "/usr/sbin",
    "/usr/libexec",
    "/usr/local/sbin",
    "/opt/homebrew/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/opt/homebrew/opt/mariadb*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/usr/local/opt/mariadb*/bin",
    "/home/linuxbrew/.linuxbrew/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/mariadb*/bin",
)


def _version(path: str) -> list[int]:
    """The numbers in ``path``, so that 15 sorts after 9."""
    digits = "".join(c if c.isdigit() else " " for c in path)
    return [int(number) for number in digits.split()]


def find(program: str, path: str | None = None, directories: Sequence[str] = DIRECTORIES) -> Path | None:
    """Where ``program`` is: in ``path`` (default: the environment's ``PATH``) or in one of ``directories``."""
    places = [os.environ.get("PATH", os.defpath) if path is None else path]
    for pattern in directories:
        places += sorted(map(str, Path("/").glob(pattern.lstrip("/"))), key=_version, reverse=True)
    found = shutil.which(program, path=os.pathsep.join(place for place in places if place))
    return Path(found) if found else None


def installed(program: str) -> Path:
    """Where ``program`` is that pip has installed beside the Python of the tests."""
    return Path(sysconfig.get_path("scripts")) / program


def require(program: str) -> Path:
    """Where ``program`` is, or ``ToolMissing``."""
    found = find(program)
    if found is None:
        title = next((tool.title for tool in TOOLS if program in tool.programs), program)
        raise ToolMissing(f"{title} is missing ({program} was not found); bin/test installs it where that is allowed")
    return found


def missing(
    path: str | None = None, directories: Sequence[str] = DIRECTORIES, *, among: Sequence[Tool] = TOOLS
) -> list[Tool]:
    """The tools with a missing program."""
    return [tool for tool in among if any(find(program, path, directories) is None for program in tool.programs)]


def describe(program: str) -> str:
    """``program``'s own line about its version, or that it is missing; does not start a server."""
    found = find(program)
    if found is None:
        return f"{program} missing"
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=30, check=False)
    return (answer.stdout or answer.stderr).strip().replace(str(found), program)


# Installing


def _manager() -> str | None:
    return next((name for name in ("apt-get", "dnf", "apk", "brew") if shutil.which(name)), None)


def _privilege(manager: str) -> list[str] | None:
    """What goes before the package manager's command so that it may install; ``None`` where nothing helps."""
    if manager == "brew" or os.geteuid() == 0:
        return []
    if shutil.which("sudo"):
        asked = subprocess.run(["sudo", "-n", "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if asked.returncode == 0:
            return ["sudo", "-n"]
    return None


def _run(command: Sequence[str]) -> bool:
    """Run ``command``; its output is shown only where it failed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout)
    return done.returncode == 0


@contextlib.contextmanager
def _no_service(privilege: list[str], units: Sequence[str]) -> Iterator[None]:
    """Debian starts what it installs, and at every boot, unless a policy says no and the unit is disabled."""
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:
        script = f"printf '#!/bin/sh\\nexit 101\\n' > {policy} && chmod +x {policy}"
        subprocess.run([*privilege, "sh", "-c", script], check=False)
    try:
        yield
    finally:
        if ours:
            subprocess.run([*privilege, "rm", "-f", str(policy)], check=False)
        if units and shutil.which("systemctl"):
            subprocess.run([*privilege, "systemctl", "disable", *units], capture_output=True, check=False)


@contextlib.contextmanager
def _no_cluster(privilege: list[str]) -> Iterator[None]:
    """Debian's postgresql makes a cluster and starts it when it is installed, unless its configuration says no."""
    drop_in = Path("/etc/postgresql-common/createcluster.d/tornado-persist-tests.conf")
    script = f"mkdir -p {drop_in.parent} && echo 'create_main_cluster = false' > {drop_in}"
    subprocess.run([*privilege, "sh", "-c", script], check=False)
    try:
        yield
    finally:
        subprocess.run([*privilege, "rm", "-f", str(drop_in)], check=False)


def _apt_get(privilege: list[str], tools: Sequence[Tool]) -> bool:
    # An environment variable does not pass through sudo by itself; env does. Another apt-get may be at work: wait.
    apt = [*privilege, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    if not _run([*apt, "update"]):
        sys.stderr.write("bin/test: apt-get update failed; trying with the package lists as they are\n")
    packages: list[str] = []
    for tool in tools:
        choices = tool.packages["apt-get"]
        known = (
            names
            for names in choices
            if subprocess.run(["apt-cache", "show", "--", *names], capture_output=True, check=False).returncode == 0
        )
        packages += next(known, choices[0])
    units = [unit for tool in tools for unit in tool.units]
    with _no_cluster(privilege), _no_service(privilege, units):
        return _run([*apt, "install", "--yes", "--no-install-recommends", *packages])


def install(tools: Sequence[Tool]) -> bool:
    """Install ``tools`` with the system's package manager; ``False`` where that is not allowed or fails."""
    manager = _manager()
    if manager is None or any(manager not in tool.packages for tool in tools):
        return False
    privilege = _privilege(manager)
    if privilege is None:
        return False
    sys.stderr.write(f"bin/test: installing with {manager}: {', '.join(tool.title for tool in tools)}\n")
    if manager == "apt-get":
        return _apt_get(privilege, tools)
    packages = [name for tool in tools for name in tool.packages[manager][0]]
    options = {"dnf": ["install", "-y"], "apk": ["add"], "brew": ["install"]}[manager]
    return _run([*privilege, manager, *options, *packages])


def main(arguments: Sequence[str] = ()) -> int:
    """``arguments`` are pytest's."""
    wanted = TOOLS + LONG if any(argument.startswith("--soak") for argument in arguments) else TOOLS
    needed = missing(among=wanted)
    if needed:
        install(needed)
        needed = missing(among=wanted)
    if needed:
        names = "; ".join(f"{tool.title} ({', '.join(tool.programs)})" for tool in needed)
        sys.stderr.write(f"bin/test: missing, and could not be installed here: {names}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
