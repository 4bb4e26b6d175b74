"""A program that runs a journal against a limit on the size of its files; :mod:`tests.journal.test_failures` runs it.

The kernel then cuts a write short, in the middle of a record, and refuses the next one, as a full disk does.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from pathlib import Path

from tests.journal.tools import Driver, wait_until

LIMIT = 300_000  # bytes: less than is probed for, so that no new segment is begun under it


def main(directory: Path) -> None:
    assert signal.getsignal(signal.SIGXFSZ) is signal.SIG_IGN, "Python takes it so that the call fails instead"
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    sent = 0
    numbers: list[int] = []
    refusal = ""
    with Driver(directory) as driver:

        def send(count: int) -> str:
            nonlocal sent
            futures = []
            for _ in range(count):
                futures.append(driver.begin(b"%08d" % sent + b"x" * 10_000))
                sent += 1
            answers = driver.wait(*futures)
            for number, answer in enumerate(answers, sent - count):
                if isinstance(answer, int):
                    numbers.append(number)
            return next((str(answer) for answer in answers if not isinstance(answer, int)), "")

        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
        while not refusal:
            refusal = send(7)
        at_the_limit = len(numbers)
        for _ in range(3):
            send(7)
        released = driver.journal.release(0, {"written": "at the limit"})
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        wait_until(lambda: driver.journal.problem == "")
        for _ in range(10):
            assert not send(7)
        read = len(driver.read(max_bytes=1 << 20))
    result = {
        "refusal": refusal,
        "at_the_limit": at_the_limit,
        "released_at_the_limit": released,
        "acknowledged": len(numbers),
        "read": read,
        "numbers": numbers,
    }
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
