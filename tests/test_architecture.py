"""The parts import one another in one direction, and each third-party library stays where it belongs."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "tornado_persist"

# What each part may import of the others; errors, log, files, masking and the bare package are everybody's.
ALLOWED = {
    "errors": set[str](),
    "log": {"logfile"},
    "logfile": set[str](),
    "masking": set[str](),
    "trail": set[str](),
    "systemd": set[str](),
    "files": set[str](),
    "times": set[str](),
    "rows": set[str](),
    "hunch": set[str](),
    "annotations": set[str](),
    "models": {"annotations", "rows", "times"},
    "decoder": {"annotations", "hunch", "models", "rows", "times"},
    "parser": {"decoder", "models", "rows", "times"},
    "metrics": {"metrics", "models"},
    "interpreter": set[str](),
    "turns": set[str](),
    "background": set[str](),
    "buffer": {"models", "rows"},
    "datadir": set[str](),
    "backoff": set[str](),
    "deadletter": {"models", "rows", "times"},
    "journal": {"journal", "models"},
    "settler": {"buffer", "deadletter", "metrics", "models", "sinks"},
    "backlog": {"journal", "buffer", "metrics", "models", "parser", "rows", "times", "trail"},
    "sinks": {"sinks", "hunch", "models", "rows"},
    "config": {"sinks"},
    "ingest": {"backlog", "buffer", "journal", "models", "parser", "rows", "times", "turns"},
    "releaser": {"background", "deadletter", "journal", "sinks"},
    "flusher": {
        *("settler", "releaser", "background", "backlog", "backoff", "buffer", "deadletter"),
        *("journal", "metrics", "models", "rows", "sinks"),
    },
    "exposition": {"flusher", "ingest", "journal", "metrics", "models"},
    "history": {"flusher", "ingest", "journal", "metrics", "models"},
    "web": {"web", "exposition", "history", "flusher", "ingest", "journal", "metrics", "models", "times"},
    "service": {
        *("web", "history", "flusher", "ingest", "backlog", "buffer", "deadletter", "journal", "systemd"),
        *("metrics", "models", "parser", "sinks", "config", "datadir", "interpreter", "background"),
    },
    "client": {"models"},
    "transfer": {"transfer", "client", "backoff", "models"},
    "cli": {"cli", "client", "transfer", "service", "config", "datadir", "journal", "models", "parser"},
    "testing": {"testing", "models", "rows", "sinks", "times"},
    "__main__": {"cli"},
}
EVERYBODYS = {"errors", "log", "files", "masking"}
# The flusher knows a sink by its runner alone, config and service by the registry and the interface.
SINK_MODULES = {
    "flusher": {"runner"},
    "settler": {"runner"},
    "releaser": {"runner"},
    "config": {"registry", "base"},
    "service": {"registry", "base", "runner"},
    "testing": {"base"},
}
LIBRARIES = {
    "tornado": {"web", "flusher", "service"},
    "prometheus_client": {"exposition"},
    "sqlalchemy": {"sinks"},
    "psycopg": {"sinks"},
    "pymysql": {"sinks"},
    "structlog": {"log"},
    "systemd_watchdog": {"systemd"},
    "pydantic_settings": {"config"},
    "pytest": {"testing"},
    "msgspec": {"annotations", "decoder", "rows", "sinks"},
    "tqdm": {"cli"},
    "shtab": {"cli"},
}


def modules() -> dict[Path, str]:
    """Every module, and the part it belongs to: the first name below the package."""
    return {
        path: path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def imports(path: Path) -> set[str]:
    """Dotted names of all that a module imports, names imported from a package included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            assert node.module is not None
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def test_every_part_is_in_the_table() -> None:
    assert set(modules().values()) == set(ALLOWED)


def test_imports_point_one_way() -> None:
    for path, part in modules().items():
        for name in imports(path):
            if name.startswith("tornado_persist.") and name != "tornado_persist.__version__":
                used = name.split(".")[1]
                assert used in ALLOWED[part] | EVERYBODYS, f"{part} imports {name}"
                if used == "sinks" and part in SINK_MODULES:
                    assert name.split(".")[2] in SINK_MODULES[part], f"{part} imports {name}"


def test_each_library_stays_in_its_place() -> None:
    for path, part in modules().items():
        for name in imports(path):
            library = name.split(".")[0]
            assert part in LIBRARIES.get(library, {part}), f"{part} imports {name}"


def test_only_config_reads_the_environment() -> None:
    for path, part in modules().items():
        if part != "config":
            assert "environ" not in path.read_text(), path.name


def test_modules_are_small() -> None:
    for path in modules():
        assert len(path.read_text().splitlines()) <= 400, path.name
