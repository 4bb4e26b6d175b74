"""The documentation: it builds without a warning, needs no other host, and covers everything that there is."""

from __future__ import annotations

import argparse
import ast
import html
import json
import re
import sqlite3
import subprocess
import sys
import textwrap
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.process import Persistd, persistd
from tests.rows import session, task
from tests.test_config import flat, keys
from tornado_persist import service
from tornado_persist.cli import program
from tornado_persist.config import loading
from tornado_persist.errors import InvalidBatch
from tornado_persist.pipeline import ingest
from tornado_persist.records import freejson, models
from tornado_persist.sinks import reader, registry
from tornado_persist.telemetry import refusals
from tornado_persist.web import base, bodies, reading, server
from tornado_persist.web.app import ROUTES
from tornado_persist.web.base import GetHandler

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
EXAMPLE = DOCS / "examples" / "keyvalue"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as HTML; a warning is an error."""
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", str(directory / "doctrees")]
    done = subprocess.run(
        [*command, str(DOCS), str(directory / "html")], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return directory / "html"


def words(page: Path) -> str:
    """The text of a built page, without its frame."""
    article = page.read_text(encoding="utf-8").partition("<article")[2].partition("</article>")[0]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", article)).split())


def test_every_page_is_built_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in DOCS.glob("*.rst"):
        text = (site / f"{page.name.removesuffix('.rst')}.html").read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe|link)\b[^>]*?(?:src|href)="([^"]+)"', text)
        assert loaded
        assert not [address for address in loaded if "//" in address], page.name
        # Links between pages lead to pages, not to their sources.
        assert not re.search(r'<a [^>]*href="(?!_)[^"#:]+\.rst"', text), page.name


def test_a_link_to_a_file_that_is_missing_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / '_extensions')!r})\nextensions = ['repository']\n"
    )
    (tmp_path / "docs" / "index.rst").write_text("A page\n======\n\n`There <../conf/nothing.toml>`_, `here <x.rst>`_\n")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        str(tmp_path / "docs"),
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "index.rst:4: WARNING: a link leads to no file: ../conf/nothing.toml" in done.stderr
    assert "unknown document: '/x'" in done.stderr


def test_every_setting_is_in_the_reference_with_its_default_variable_and_reload(site: Path) -> None:
    text = words(site / "configuration.html")
    settings = loading.load(None)
    defaults = flat(settings.model_dump(mode="json", exclude={"sinks"}))
    defaults["data_dir"] = "data"  # a loaded one is absolute
    assert defaults.keys() == set(keys(loading.Settings))
    for sink in registry.BUILT_IN:
        for name, field in registry.find(sink).Settings.model_fields.items():
            default = field.default.get_secret_value() if name == "url" else field.default
            defaults[f"sinks.{sink}.{name}"] = default
    for key, default in defaults.items():
        variable = f"PERSISTD_{key.upper().replace('.', '__')}"
        reload = "applies it" if key.startswith(service.LIVE) else "names it in the log; it needs a restart"
        entry = rf"(?<![\w.]){re.escape(key)} ¶ Type : [^¶]+? Default : {re.escape(json.dumps(default))} ([^¶]+?)"
        found = re.search(f"{entry} Environment: {variable} . A reload \\(SIGHUP\\) {reload}\\.", text)
        assert found, key
        assert len(found[1]) > 10, key  # something is said about it


def test_every_alert_is_explained() -> None:
    text = (DOCS / "operations.rst").read_text(encoding="utf-8")
    rules = yaml.safe_load((ROOT / "conf" / "prometheus-alerts.yaml").read_text())["groups"][0]["rules"]
    titles = re.findall(r"^(Persistd\w+)\n~+$", text, re.MULTILINE)
    assert titles == [rule["alert"] for rule in rules]
    for part in re.split(r"^Persistd\w+\n~+$", text, flags=re.MULTILINE)[1:]:
        assert [word for word in ("**Means**", "**Look at**", "**Do**") if word not in part] == []


def chapter(text: str, title: str) -> str:
    """A section of a page."""
    return re.split(r"\n\n\n.+\n-+\n", text.partition(f"{title}\n{'-' * len(title)}\n")[2])[0]


def defined(path: Path) -> set[str]:
    """The functions and methods of a module."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in tree.body if isinstance(node, functions)}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, functions)}
    return names


@pytest.mark.parametrize("title", ["A batch", "A start with recovery", "A bad row", "GET /health"])
def test_each_way_goes_through_at_most_seven_files_and_functions_that_exist(title: str) -> None:
    text = chapter((DOCS / "batch.rst").read_text(encoding="utf-8"), title)
    steps = re.findall(r"^\d\. ``([\w/]+\.py):([\w.]+)``", text, re.MULTILINE)
    assert 4 <= len(steps) <= 7
    assert len(re.findall(r"^\d\. ", text, re.MULTILINE)) == len(steps)
    for name, function in re.findall(r"``([\w/]+\.py)(?::([\w.]+))?``", text):
        assert (ROOT / "tornado_persist" / name).is_file(), name
        assert not function or function in defined(ROOT / "tornado_persist" / name), (name, function)


def test_the_drawing_can_be_read_by_eye_and_by_machine() -> None:
    drawing = ElementTree.parse(DOCS / "batch.svg").getroot()
    assert drawing.get("role") == "img"
    assert drawing.findtext("{http://www.w3.org/2000/svg}title")
    style = drawing.findtext("{http://www.w3.org/2000/svg}style") or ""
    assert "prefers-color-scheme: dark" in style


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(actions[0].choices) if actions else {}


@pytest.mark.parametrize("pages", [("api.rst", "commands.rst"), ("reference.zh.rst",)])
def test_the_reference_has_every_path_and_every_command_in_one_row(pages: tuple[str, ...]) -> None:
    text = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in pages)
    for pattern, handler in ROUTES:
        if "+" not in pattern:  # what the pages load, and rows by their keys
            method = "GET" if issubclass(handler, GetHandler) else "POST"
            assert f"``{method} {pattern.replace(chr(92), '')}``" in text, pattern
    rows = re.findall(r"^   \* - ``bin/persistd \[?(\w+)", text, re.MULTILINE)
    assert sorted(rows) == sorted(subcommands(program.parser()))


def test_every_setting_is_in_the_chinese_reference_with_its_default() -> None:
    text = (DOCS / "reference.zh.rst").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^   \* - ``([a-z_.]+)``\n     - ``(.+)``\n     - \S", text, re.MULTILINE))
    settings = flat(tomllib.loads((ROOT / "conf" / "persistd.toml").read_text(encoding="utf-8")))
    assert settings.keys() >= set(keys(loading.Settings))
    assert {key: json.loads(default) for key, default in shown.items()} == settings


def literals(text: str) -> list[str]:
    """The literal blocks of a page: commands and what they print."""
    return re.findall(r"^(?::|.*::)\n\n((?: {4}.*\n|\n)+)", text, re.MULTILINE)


def test_every_log_line_that_is_shown_is_written_by_the_module_or_package_that_it_names() -> None:
    shown = set()
    for page in (ROOT / "README.rst", *DOCS.glob("*.rst")):
        text = page.read_text(encoding="utf-8")
        shown |= set(re.findall(r'"event": "([^"]*)".*?"logger": "([\w.]+)"', text))
        shown |= set(re.findall(r"^ *\S+ \[\w+ *\] (.+?) \[(tornado_persist[\w.]*)\]", text, re.MULTILINE))
    assert len(shown) > 5
    for event, module in shown:
        path = ROOT / module.replace(".", "/")
        files = [*path.glob("*.py")] or [path.with_suffix(".py")]
        assert any(f'"{event}"' in file.read_text(encoding="utf-8") for file in files), (event, module)


def test_the_chinese_readme_says_what_the_english_one_says_in_the_same_order() -> None:
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.rst", "README.zh.rst"))
    outline = r"^(?:-{3,}|={3,}|~{3,})$"
    assert re.findall(outline, english, re.MULTILINE)
    assert len(re.findall(outline, chinese, re.MULTILINE)) == len(re.findall(outline, english, re.MULTILINE))
    assert len(literals(english)) > 10
    assert [block.strip() for block in literals(chinese)] == [block.strip() for block in literals(english)]
    linked = [set(re.findall(r"<(docs/\w+\.rst)>", text)) for text in (english, chinese)]
    assert linked[0] <= linked[1] | {"docs/reference.zh.rst"}
    for figure in re.findall(r"\d+,\d{3}", english):
        assert figure in chinese


def test_the_chinese_pages_have_one_word_for_the_journal_and_one_for_the_log() -> None:
    dashboard = ROOT / "tornado_persist" / "web" / "assets" / "dashboard" / "text.js"
    for page in (ROOT / "README.zh.rst", DOCS / "reference.zh.rst", dashboard):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?<!预写)(?<!运行)日志", text), page


def test_the_readme_is_short_and_shows_the_dashboard() -> None:
    assert len((ROOT / "README.rst").read_text(encoding="utf-8").splitlines()) <= 200
    for picture in (DOCS / "dashboard.png", DOCS / "sessions.png"):
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert picture.stat().st_size < 200_000


def test_the_glossary_has_every_term() -> None:
    text = (DOCS / "glossary.rst").read_text(encoding="utf-8")
    terms = re.findall(r"^   (\S.*)\n      \S", text, re.MULTILINE)
    wanted = {"journal", "segment", "record", "cursor", "checkpoint", "group commit", "batch", "row", "merge", "flush"}
    wanted |= {"chunk", "sink", "upsert", "dead letter", "backlog", "backoff", "drain"}
    wanted |= {"instance", "sticky routing", "guard", "fail-over"}
    assert wanted <= set(terms)
    assert len(terms) == len(set(terms))
    assert "<glossary.rst>" in (DOCS / "index.rst").read_text(encoding="utf-8")


def test_performance_is_one_page() -> None:
    assert len((DOCS / "performance.rst").read_text(encoding="utf-8").splitlines()) <= 130


def test_every_command_that_is_not_of_the_process_has_a_chapter() -> None:
    titles = re.findall(r"^(.+)\n[-~]+$", (DOCS / "commands.rst").read_text(encoding="utf-8"), re.MULTILINE)
    of_the_process = {"run", "start", "stop", "status", "reload", "check"}
    for name, parser in subcommands(program.parser()).items():
        wanted = {name, *(f"{name} {inner}" for inner in subcommands(parser))}
        assert name in of_the_process or wanted <= set(titles), name


def test_the_program_that_reads_the_journal_prints_what_waits(tmp_path: Path) -> None:
    page = (DOCS / "journal.rst").read_text(encoding="utf-8")
    program, _, after = page.partition(".. code-block:: python\n\n")[2].partition("\nAfter four tasks")
    output = after.partition("::\n\n")[2]
    (tmp_path / "read_journal.py").write_text(textwrap.dedent(program), encoding="utf-8")
    with Persistd(tmp_path, "[buffer]\nflush_interval = 600") as running:
        for keys in ("a", "bc", "d"):
            running.post("task", *map(task, keys))
        running.kill()
        command = [sys.executable, "read_journal.py", str(running.data_dir / "journal")]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    found, shown = ([line.split()[2:] for line in text.strip().splitlines()] for text in (done.stdout, output))
    assert found == shown


# The sink of plugin.rst, whose own tests are beside it.


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A directory for ``PYTHONPATH`` in which the example is as pip leaves it."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = tmp_path / "site" / "persist_keyvalue-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    offers = project["entry-points"][registry.GROUP]
    (info / "entry_points.txt").write_text(
        "\n".join([f"[{registry.GROUP}]", *(f"{name} = {value}" for name, value in offers.items()), ""])
    )
    (info.parent / "persist_keyvalue.py").write_text((EXAMPLE / "persist_keyvalue.py").read_text())
    return info.parent


def test_the_service_writes_to_the_sink_of_the_documentation(tmp_path: Path, installed: Path) -> None:
    chosen = 'sink = "keyvalue"\n[sinks.keyvalue]\npath = "here.kv"\n[records]\nrequire_session = true\n'
    with Persistd(tmp_path, chosen, variables={"PYTHONPATH": str(installed)}) as running:
        assert running.post("task", task("t")).status_code == 422
        assert running.post("session", session("s")).status_code == 200
        assert running.post("task", task("t", session_id="s")).status_code == 200
        assert running.post("task", task("t", session_id="s", target_text="x")).status_code == 200
        assert running.flush()["tasks_written"] == 1
        with closing(sqlite3.connect(running.data_dir / "here.kv")) as store:
            ((value,),) = store.execute(
                "SELECT value FROM rows WHERE kind = 'task' AND key = '[\"s\", \"t\"]'"
            ).fetchall()
        assert json.loads(value)["target_text"] == "x"
        worse = [line["event"] for line in running.log() if line["level"] in ("warning", "error")]
        assert worse == ["batch refused"]
        done = persistd("check", "-c", str(running.file), cwd=tmp_path, PYTHONPATH=str(installed))
        assert re.search(r"^sink +keyvalue: a key-value store at \S+here\.kv$", done.stdout, re.MULTILINE), done
        assert "tables" not in done.stdout  # it has none


def test_a_mistake_in_the_table_of_the_documented_sink_is_named(tmp_path: Path, installed: Path) -> None:
    (tmp_path / "c.toml").write_text('sink = "keyvalue"\n[sinks.keyvalue]\npaht = "x"\n')
    done = persistd("check", "-c", "c.toml", cwd=tmp_path, PYTHONPATH=str(installed))
    problem = "sinks.keyvalue.paht: this key is not known (did you mean path?)"
    assert (done.returncode, done.stderr) == (2, f"persistd: c.toml, line 3: {problem}\n")


def test_the_fixed_limits_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "security.rst").read_text().partition("Fixed:")[2].partition("---")[0]
    rows = dict(re.findall(r"^   \* - (.+)\n     - (.+)$", text, re.MULTILINE))
    expected: dict[str, Sequence[float]] = {
        "Request line and headers": [server.MAX_HEADER_BYTES >> 10],
        "``Content-Type``": [bodies.LONGEST_TYPE],
        "``X-Persist-After``": [ingest.MOST_AHEAD.total_seconds()],
        "A body over": [base.PATIENCE],
        "A client that sends on": [server.LINGER],
        "Members": [bodies.MOST_MEMBERS],
        "A text": [models.MAX_TEXT, 255, 512, 50, models.MAX_KEY],
        "Nesting": [models.MAX_DEPTH],
        "A number": [freejson.MAX_NUMBER],
        "Errors": [InvalidBatch.MAX_ERRORS],
        "``detail``": [InvalidBatch.MAX_MESSAGE, InvalidBatch.MAX_STEP],
        "Rows of a page": [reading.MOST_ROWS, reading.MOST_UNFINISHED],
        "A read": [reader.READ_TIMEOUT],
        "Log lines": [1, refusals.LINES_A_SECOND, refusals.EVERY],
        "A client's text": [refusals.LONGEST],
        "Descriptors": [server.RESERVED],
    }
    for name, numbers in expected.items():
        (found,) = (value for row, value in rows.items() if row.startswith(name))
        told = [float(number) for number in re.findall(r"[0-9]+", found.replace(",", "").replace("one in", ""))]
        assert [number for number in numbers if number not in told] == [], name
