"""The command: `mfgd` runs one, `mfgd --multirun` sweeps."""

from __future__ import annotations

import gc
import os
import sys

import hydra

from mfgd import config, interrupts, passwords, refusals
from mfgd.compose import hide_arguments
from mfgd.environment import search_here_last
from mfgd.errors import refuse_odd_arguments
from mfgd.pool import warm_up
from mfgd.runner import RunFailed
from mfgd.session import Session
from mfgd.terminal import warn


def set_up_process() -> None:
    """Sets this process up to execute shell lines."""
    search_here_last()  # the user's own functions are there
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come to us, not to the terminal
    sys.excepthook = passwords.print_error
    interrupts.listen()
    # What the imports made is no garbage. To look for it again and again would cost a tenth of the
    # time that composition takes.
    gc.freeze()
    if {"-m", "--multirun"} & set(sys.argv):
        warm_up()


def execute() -> Session:
    """Solves and tracks the shell line in `sys.argv`; a process may execute several in turn.

    Raises:
        SystemExit: 2 if the shell line is refused, 130 if it is interrupted.
    """
    session, status = Session(), None
    decorate = hydra.main(version_base="1.3", config_path=str(config.CONF), config_name="config")
    try:
        with refusals.exit_on_refusal():
            refuse_odd_arguments()
            sys.argv[1:], session.uris = hide_arguments(sys.argv[1:])
            decorate(session.run)()
    except KeyboardInterrupt:
        status = "KILLED"
        raise SystemExit(interrupts.EXIT_STATUS) from None
    except RunFailed as failed:  # as Hydra passes it on; the other runs went on
        warn(str(failed))
    except BaseException:
        status = "FAILED"
        raise
    finally:
        with interrupts.defer():
            session.close(status)
    return session


def main() -> None:
    """Executes the shell line of this process, and exits with 1 if a run raised, or is not where it
    is tracked."""
    set_up_process()
    try:
        complete = execute().complete
    except KeyboardInterrupt:  # it came when all runs were written
        raise SystemExit(interrupts.EXIT_STATUS) from None
    gc.freeze()  # Python's end would look through all for garbage, which takes half a second
    if not complete:
        raise SystemExit(1)
