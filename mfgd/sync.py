"""`mfgd-sync` sends the runs that a store did not take."""

from __future__ import annotations

import os
import sys
from contextlib import chdir
from pathlib import Path

from mfgd import interrupts, mlflow_resume, passwords
from mfgd.errors import Parser, Refused, exit_if_refused, refuse_odd_arguments
from mfgd.mlflow_client import describe
from mfgd.mlflow_store import MlflowTracker
from mfgd.outbox import FOLDER, Outbox, find_outboxes
from mfgd.passwords import HIDDEN, hide_password
from mfgd.terminal import say


def send(outbox: Outbox, uri: str | None) -> int:
    """Sends what one command could not send, and ends its sweep.

    Args:
        outbox: of the command.
        uri: the tracking URI, if not the command's.

    Returns:
        How many runs the store has still not taken.

    Raises:
        Refused: the command still runs, or the store cannot be reached.
    """
    state = outbox.state
    if mlflow_resume.lives(state):
        raise Refused(f"{outbox.folder}: process {state['pid']} still writes; end it first")
    shown = state["uri"]
    given = uri or _find_password(shown) or shown
    if f"{HIDDEN}@" in given or f"={HIDDEN}" in given:
        raise Refused(f"{describe(shown)}: its password was not kept; give it again by --uri")
    count = len(outbox.names())
    tracker = MlflowTracker(given, state["experiment"], state["figures"], state["points"])
    # Nobody has ended the sweep of a command that died.
    status = "KILLED" if state["status"] == "RUNNING" else state["status"]
    with interrupts.defer():
        tracker.reopen(outbox)
        tracker.end(status, {}, state["unfinished"])
    sent = count - len(outbox.names())
    say(f"{sent} of {count} runs were sent to {hide_password(given)}")
    return tracker.unsent


def send_all(folder: Path, uri: str | None) -> int:
    """Sends what waits in a folder; see `send`."""
    if not folder.is_dir() or not (outboxes := find_outboxes(folder.resolve())):
        raise Refused(f"{folder}: nothing waits there; allowed is a folder with {FOLDER}/")
    with chdir(folder):  # the artifacts of an experiment that is made are there
        return sum(send(outbox, uri) for outbox in outboxes)


def _find_password(shown: str) -> str | None:
    """The URI in MLFLOW_TRACKING_URI, if it is this one without the password."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    return uri if uri and hide_password(uri) == shown else None


def main() -> None:
    """`mfgd-sync`: sends all that waits in a folder; exits with 1 if something still waits."""
    sys.excepthook = passwords.print_error
    interrupts.listen()
    parser = Parser(
        "mfgd-sync", description=f"Sends the runs in {FOLDER}/, which a store did not take."
    )
    parser.add_argument("folder", nargs="?", default=".", help="where mfgd was started")
    parser.add_argument("--uri", help="tracking URI (default: that of the command)")
    try:
        with exit_if_refused():
            refuse_odd_arguments()
            given = parser.parse_args()
            waiting = send_all(Path(given.folder), given.uri)
    except KeyboardInterrupt:
        raise SystemExit(interrupts.EXIT_STATUS) from None
    if waiting:
        raise SystemExit(1)
