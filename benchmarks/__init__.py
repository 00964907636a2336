"""How fast mfgd is, as ratios to the same work done without it. README.md has the table."""
