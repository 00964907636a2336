"""The command `mfgd`: `mfgd` runs one, `mfgd --multirun` sweeps."""

from mfgd.environment import search_here_last


def main() -> None:
    """The console script."""
    from mfgd import interrupts

    interrupts.leave_at_once()  # the imports take seconds, and nothing is begun
    from mfgd import command

    command.main()


if __name__ == "__main__":
    search_here_last()  # before the imports: python -m looks in the working directory first
    main()
