"""The client's metadata. It has no ``tornado_persist/__init__.py``: that one is the service's, where both are."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).resolve().parent
PACKAGE = "tornado_persist.client"


def version() -> str:
    """As the package says it; read, not imported, because httpx may not be there yet."""
    source = (HERE / "src" / "tornado_persist" / "client" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', source, re.MULTILINE)
    if found is None:
        raise RuntimeError("tornado_persist/client/__init__.py does not state __version__")
    return found[1]


setup(
    name="tornado-persist-client",
    version=version(),
    description="The client of the persistence service tornado-persist: never blocks, never raises for the network",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    author="tornado-persist contributors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Intended Audience :: Developers",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.9",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Topic :: Database :: Front-Ends",
        "Typing :: Typed",
    ],
    package_dir={"": "src"},
    packages=[PACKAGE],
    package_data={PACKAGE: ["py.typed"]},
    python_requires=">=3.9",
    install_requires=["httpx>=0.25"],
)
