"""Makes charts.png, compare.png and overview.png, beside this file, out of the demo sweep.

`make screenshots` calls it, and needs Chromium. It runs the sweep in an empty folder, opens the
page that the sweep's last line names and the comparison page, and saves what is seen.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from browser import NO_ASSISTANT, find_link, launch, serve  # in tests/

HERE = Path(__file__).parent
PATIENCE = 120_000
"""Milliseconds until the first chart is drawn."""
SETTLED = 20_000
"""Milliseconds until the last chart is drawn, of which neither page tells."""


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="mfgd-") as name:
        folder = Path(name)
        line = [sys.executable, "-m", "mfgd", "--multirun", "experiment=demo"]
        done = subprocess.run(line, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        (page,) = folder.glob("mlartifacts/demo/*/artifacts/compare.html")
        shutil.copy(page.parent / "figures" / "overview.png", HERE)
        with launch() as chromium, serve(folder) as address:
            take(chromium, page.as_uri(), "html[data-ready]", "compare.png", (1200, 1000))
            address = f"{address}/{find_link(done.stdout)}"
            take(chromium, address, "path.js-line", "charts.png", (1400, 900))


def take(chromium: Any, address: str, drawn: str, file: str, size: tuple[int, int]) -> None:
    """Saves what a page shows once an element that the selector `drawn` finds is there."""
    width, height = size
    tab = chromium.new_page(viewport={"width": width, "height": height}, device_scale_factor=1)
    tab.add_init_script(NO_ASSISTANT)
    tab.goto(address)
    tab.wait_for_selector(drawn, state="attached", timeout=PATIENCE)
    tab.wait_for_timeout(SETTLED)
    tab.screenshot(path=HERE / file)
    tab.close()


if __name__ == "__main__":
    main()
