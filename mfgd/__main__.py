"""The command `mfgd`: `mfgd` runs one, `mfgd --multirun` sweeps."""

from mfgd import interrupts


def main() -> None:
    """The console script."""
    interrupts.leave_at_once()  # the imports take seconds, and nothing is begun
    from mfgd import session

    session.main()


if __name__ == "__main__":
    main()
