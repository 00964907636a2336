"""What the fuzz tests share: how many cases there are, what no case may do, and broken bytes.

By hand, with other cases at each call: MFGD_FUZZ=50 pytest tests/test_fuzz.py
tests/test_fuzz_files.py runs 50 times as many.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

TIMES = int(os.environ.get("MFGD_FUZZ", "1"))
DEADLINE = 20
"""Seconds after which a case hangs."""
CANARY = "canary"
"""The folder that a case makes if what it names is executed."""
SET_HANDLER = signal.signal
"""The tests of the command replace it."""
NUMBERS = tuple(
    re.findall(
        r"\S+",
        "0 -1 1 2 3 1e-308 5e-324 1e308 1e309 -0.0 nan inf -inf .nan .inf 1_0 0x10 1e999999 +1 1. "
        "99999999999999999999 170141183460469231731687303715884105728 0.1 null true false",
    )
)
TEXTS = (
    "",
    " ",
    "'",
    '"',
    "'a",
    "a'b\"c",
    "\\",
    "a\\'b",
    "${rank}",
    "${",
    "${oc.env:HOME}",
    "${oc.env:NO_SUCH}",
    "${nothing.here}",
    "${hydra:job.num}",
    "$\\q$",
    "$(touch canary)",
    "`touch canary`",
    "???",
    "\x00",
    "a\nb",
    "\x1b[2J",
    "\u202e",
    "é×σ",
    "\ud800",
    "<script>alert(1)</script>",
    "x" * 5000,
    "[",
    "[1,2",
    "[[1],[2]]",
    "{a:1}",
    "{",
    "[]",
    "{}",
    "[nan]",
    "1,2",
    "a,b",
    ",",
    "range(3,3)",
    "range(1,3)",
    "range(0,1,0)",
    "range(0,inf)",
    "range(nan,1)",
    "range(1000000000000)",
    "range(",
    "choice(1,2)",
    "choice()",
    "glob(*)",
    "glob(q)",
    "interval(0,1)",
    "shuffle(range(3))",
    "sort(2,1)",
    "int(q)",
    "tag(a,1)",
    "os.system",
    "builtins.eval",
    "mfgd.command.main",
    "../../etc/passwd",
    "/dev/null",
    ".",
    "=",
    "a=b",
    "*",
    "!!python/object/apply:os.mkdir [canary]",
    "&a [*a]",
)


def cases(number: int) -> Callable:
    """Settings of a test with so many cases: always the same ones, unless it is run by hand."""
    return settings(
        max_examples=number * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),  # to explain a failure takes minutes
        suppress_health_check=list(HealthCheck),
    )


class Hangs(BaseException):
    """No `Exception`, which might be taken for a fault of the input."""


@contextmanager
def harmless(folder: Path) -> Iterator[None]:
    """Fails if the block hangs, or changes what files there are in a folder."""

    def end(*_: object) -> None:
        raise Hangs

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    kept = SET_HANDLER(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        SET_HANDLER(signal.SIGALRM, kept)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes with a few faults: cut, changed, doubled, put in or taken out."""
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(0, 8))
        match draw(st.sampled_from(["cut", "flip", "put", "take", "double"])):
            case "cut":
                content = content[:at]
            case "flip":
                content = content[:at] + draw(st.binary(min_size=1, max_size=2)) + content[at + 1 :]
            case "put":
                said = draw(st.sampled_from([*NUMBERS, *TEXTS]))
                put = said.encode("utf-8", "surrogatepass")
                content = content[:at] + put + content[at:]
            case "take":
                content = content[:at] + content[at + length :]
            case "double":
                content = content[: at + length] + content[at:]
    return content
