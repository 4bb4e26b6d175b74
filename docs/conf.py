"""The documentation: ``sphinx-build -W docs build/docs``. Everything it needs is in the ``test`` extra of setup.py."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_extensions")]

from tornado_persist import __version__  # noqa: E402 - found by the line above

project = "tornado-persist"
author = "tornado-persist contributors"
copyright = author
version = release = __version__

extensions = ["repository", "settings"]
exclude_patterns = ["examples"]
# Most examples are of a shell and what it prints.
highlight_language = "none"
nitpicky = True

html_theme = "furo"
html_title = f"tornado-persist {__version__}"
# The sources are in the repository.
html_copy_source = False
html_show_sphinx = False
