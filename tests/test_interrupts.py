"""Interruptions of a process, by real signals."""

import signal
import subprocess
import sys
import time

import pytest

from mfgd.interrupts import EXIT_STATUS

BLOCK = """
import os, signal, sys
from mfgd import interrupts
interrupts.listen({listen})
try:
    with interrupts.defer():
        with interrupts.defer():
            for number in {sent}:
                os.kill(os.getpid(), number)
            print("written")
        print("closed")
    print("went on")
except KeyboardInterrupt:
    for number in {sent}:
        os.kill(os.getpid(), number)
    print("interrupted")
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "sent", [[signal.SIGINT], [signal.SIGINT] * 3, [signal.SIGTERM, signal.SIGINT], [signal.SIGHUP]]
)
def test_a_block_is_complete_and_later_signals_change_nothing(sent):
    done = run(BLOCK.format(listen="", sent=[int(number) for number in sent]))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["written", "closed", "interrupted"]


def test_a_worker_hears_its_own_signal_only():
    told = "[signal.SIGTERM]"
    done = run(BLOCK.format(listen=told, sent=[int(signal.SIGINT), int(signal.SIGHUP)]))
    assert done.stdout.split() == ["written", "closed", "went", "on"]
    done = run(BLOCK.format(listen=told, sent=[int(signal.SIGINT), int(signal.SIGTERM)]))
    assert done.stdout.split() == ["written", "closed", "interrupted"]


def test_outside_a_block_the_first_signal_interrupts_at_once():
    code = "import os\nfrom mfgd import interrupts\ninterrupts.listen()\n"
    done = run(f"{code}try:\n    os.kill(os.getpid(), 15)\nexcept KeyboardInterrupt:\n    print(1)")
    assert done.stdout == "1\n"


def test_before_anything_is_begun_the_process_leaves_without_a_word():
    code = "import os\nfrom mfgd import interrupts\ninterrupts.leave_at_once()\n"
    done = run(f"{code}os.kill(os.getpid(), 2)\nprint('went on')")
    assert (done.returncode, done.stdout, done.stderr) == (EXIT_STATUS, "", "")


PATIENT = """
import os, signal, time
from mfgd import interrupts
interrupts.listen()
def interrupt():
    os.kill(os.getpid(), signal.SIGTERM)
try:
    with interrupts.defer(0.3):
        {inside}
    print("went on")
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_block_with_little_patience_is_cut():
    began = time.monotonic()
    assert run(PATIENT.format(inside="interrupt(); time.sleep(50)")).stdout == "interrupted\n"
    assert time.monotonic() - began < 30


def test_a_block_takes_an_interruption_as_its_own():
    taken = "assert interrupts.waits() and interrupts.take() and not interrupts.waits()"
    done = run(PATIENT.format(inside=f"interrupt(); {taken}; time.sleep(0.5)"))
    assert (done.stdout, done.returncode) == ("went on\n", 0)
