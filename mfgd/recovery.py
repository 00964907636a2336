"""What becomes of a batch whose process died: the runs that it wrote, and what is tried again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mfgd.point import Point
from mfgd.runner import Finished, Job, Report, match_finished, write_result
from mfgd.tracking import Tracker

TRIES = 2
"""A batch whose process died is tried in another one; then its runs are tried one by one."""


@dataclass
class Share:
    """A batch that is not done."""

    jobs: dict[int, Point]
    """Those that are not reported, by position."""
    tries: int = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it is one run, of which a process may have died."""
        return self.tries > 0 and len(self.jobs) == 1


def share_out(batches: Sequence[Sequence[Job]]) -> list[Share]:
    """Batches of which nothing is done."""
    return [Share(dict(batch)) for batch in batches]


class Recovery:
    """What is reported of the runs of several processes: each run once.

    Args:
        tracker: keeps the runs.
        report: is told of each run that is written.
    """

    def __init__(self, tracker: Tracker, report: Report) -> None:
        self._tracker, self._report = tracker, report
        self._known: set[str] = set()
        """The ids of the runs that are reported."""

    def tell(self, share: Share, finished: Finished) -> None:
        """Reports a run of a batch."""
        del share.jobs[finished.position]
        self._known.add(finished.run_id)
        self._report(finished)

    def match(self, share: Share) -> None:
        """Reports the runs of a batch that a process wrote and did not tell of."""
        for finished in match_finished(share.jobs.items(), self._tracker, self._known):
            self.tell(share, finished)

    def try_again(self, share: Share, why: str) -> list[Share]:
        """What is tried again of a batch whose process died; a run that it may have died of twice
        is written as one that raised.

        Args:
            share: the batch.
            why: how the process died, for the traceback of the run.
        """
        self.match(share)
        share.tries += 1
        if not share.jobs:
            return []
        if share.tries < TRIES:
            return [share]
        if len(share.jobs) > 1:
            return [Share({position: point}, TRIES - 1) for position, point in share.jobs.items()]
        (job,) = share.jobs.items()
        died = RuntimeError(f"the process that solved this run died{why}")
        self.tell(share, write_result(job, died, self._tracker))
        return []
