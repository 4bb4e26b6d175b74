"""The interpreter's settings, in a process of their own: they would stay for the other tests."""

from __future__ import annotations

import subprocess
import sys


def test_threads_take_turns_sooner_and_the_collector_comes_later() -> None:
    program = (
        "import gc, sys; from tornado_persist.service import service as i; i._tune_interpreter();"
        "print(sys.getswitchinterval() == i.SWITCH_INTERVAL, gc.get_threshold()[0] == i.COLLECT_AFTER,"
        " gc.get_freeze_count() > 1000)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]
