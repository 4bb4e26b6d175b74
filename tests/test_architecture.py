"""Imports point one way, each third-party library has its place, and no module grows without end."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tornado_persist"

# What each part may import of the others. A part is a package, or a module at the top. `errors` is open to all.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "listening": set(),
    "records": {"records"},
    "telemetry": {"telemetry", "records.models", "files"},
    "journal": {"journal", "telemetry.log", "records.models", "files"},
    "sinks": {"sinks", "telemetry.log", "telemetry.redaction", "records", "files"},
    "pipeline": {"pipeline", "journal", "sinks.base", "sinks.runner", "sinks.reader", "telemetry", "records", "files"},
    "web": {"web", "pipeline", "telemetry", "records", "config.tokens"},
    "config": {"config", "files", "sinks.base", "sinks.registry", "telemetry.redaction", "records.models"},
    "service": {
        *("service", "web", "pipeline", "journal", "sinks.base", "sinks.registry", "sinks.runner"),
        *("telemetry", "records", "files", "config", "listening"),
    },
    "cli": {
        *("cli", "service", "listening", "config", "sinks.base", "journal", "pipeline.backoff"),
        *("telemetry.log", "telemetry.redaction", "records", "files"),
    },
    "testing": {"testing", "records", "sinks.base", "sinks.reader"},
    "__main__": {"cli"},
}
# The only places that import these libraries.
LIBRARIES = {
    "tornado": {"web", "pipeline.flusher", "service"},
    "prometheus_client": {"web.prometheus", "telemetry.metrics"},
    "sqlalchemy": {"sinks"},
    "psycopg": {"sinks.postgres"},
    "pymysql": {"sinks.mysql", "sinks.mysqlconnect", "sinks.bulk"},
    "structlog": {"telemetry.log"},
    "systemd_watchdog": {"telemetry.systemd"},
    "pydantic_settings": {"config"},
    "pytest": {"testing.comparison"},
    "msgspec": {"cli.lines", "records", "sinks", "pipeline.reads", "testing.reading"},
    "rich": {"cli.exporting", "cli.importing", "cli.output", "cli.stats"},
    "shtab": {"cli.program"},
}
MOST_LINES = 600
MOST_AT_THE_TOP = 14


def modules() -> dict[str, Path]:
    """Every module by its dotted name below the package; a package's own name stands for its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found.pop("")
    return found


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a module imports, names imported from a package included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            assert node.module is not None
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def within(name: str, places: set[str]) -> bool:
    """Whether a dotted name is one of ``places`` or below one of them."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_every_part_is_in_the_table() -> None:
    assert {name.split(".")[0] for name in modules()} == set(ALLOWED)


def test_imports_point_one_way() -> None:
    for module, path in modules().items():
        allowed = ALLOWED[module.split(".")[0]] | {"errors", "__version__"}
        for name in imports(path):
            if name.startswith("tornado_persist."):
                used = name.removeprefix("tornado_persist.")
                assert within(used, allowed), f"{module} imports {used}"


def test_each_library_stays_in_its_place() -> None:
    for module, path in modules().items():
        for name in imports(path):
            places = LIBRARIES.get(name.split(".")[0])
            assert places is None or within(module, places), f"{module} imports {name}"


def test_only_config_reads_the_environment() -> None:
    for module, path in modules().items():
        if module != "config.loading":
            assert "environ" not in path.read_text(), module


def test_modules_are_neither_long_nor_many_at_the_top() -> None:
    for module, path in modules().items():
        assert len(path.read_text().splitlines()) <= MOST_LINES, module
    shown = {path.name for path in PACKAGE.iterdir()} - {"__init__.py", "__pycache__", "py.typed"}
    assert len(shown) <= MOST_AT_THE_TOP, sorted(shown)
