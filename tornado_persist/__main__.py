"""``python -m tornado_persist`` is ``persistd``."""

import sys

from tornado_persist.cli import main

sys.exit(main())
