"""Look at reports and comparisons as readers do: on a phone, on a screen, in the dark, on paper.

    python -m benchmarks.pages RUN_OR_HTML [...] --output FOLDER

Takes the `report.html` of each run directory, or any page named itself, in Chromium, and leaves a picture of all of it
at 390 and at 1280 pixels, light and dark, and a PDF. Says what sticks out of the page on any of them, which nobody
could read there; ends with 1 if something does.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.chromium import Tab, find_chromium, open_tab

WIDTHS = (390, 1280)
"""A phone and a laptop, in CSS pixels."""
SCHEMES = ("light", "dark")
PAPER = 688
"""CSS pixels between the margins of an A4 page: 210 mm less 2 times 14 mm, at 96 per inch."""
_OPEN_ALL = "for (const each of document.querySelectorAll('details')) each.open = true"
STICKS_OUT = """
(() => {
  const wide = document.documentElement.clientWidth;
  const scrolls = (one) => one && (one.matches('.wide') && getComputedStyle(one).overflowX != 'visible'
    || scrolls(one.parentElement));
  return [...document.querySelectorAll('body *')]
    .filter((one) => one.getClientRects().length && one.getBoundingClientRect().right > wide + 1)
    .filter((one) => !scrolls(one) && !one.closest('svg svg, svg *'))
    .map((one) => one.tagName.toLowerCase() + (one.id && '#' + one.id) + ': ' + one.textContent.trim().slice(0, 60));
})()
"""
"""What reaches beyond the right edge of the page, other than inside what can be scrolled there."""


def sticking_out(tab: Tab) -> list[str]:
    """What of the page that is shown nobody can see, with every fold opened."""
    tab.value(_OPEN_ALL)
    return [str(one) for one in tab.value(STICKS_OUT)]


def look(tab: Tab, page: Path, folder: Path) -> list[str]:
    """Pictures and PDF of one page; returns what sticks out, with where."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for width in WIDTHS:
        for scheme in SCHEMES:
            tab.show(page, width, scheme=scheme)
            (folder / f"{width}-{scheme}.png").write_bytes(tab.screenshot())
        found += [f"{width} pixels: {one}" for one in sticking_out(tab)]
    # The kind of medium that is asked for holds for what is printed too.
    tab.show(page, PAPER, media="print")
    (folder / "paper.pdf").write_bytes(tab.pdf())
    return found + [f"paper: {one}" for one in sticking_out(tab)]


def main() -> None:
    """Look at every page that is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("pages", nargs="+", type=Path, metavar="RUN_OR_HTML")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    options = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium is installed here; `apt-get install chromium` brings one")
    pages = [one / "report.html" if one.is_dir() else one for one in options.pages]
    if gone := [str(page) for page in pages if not page.is_file()]:
        sys.exit(f"there is no page at {', '.join(gone)}; a finished run has its report.html")
    faults = 0
    with open_tab(chromium) as tab:
        for page in pages:
            name = page.parent.name if page.name == "report.html" else page.stem
            found = look(tab, page, options.output / name)
            faults += len(found)
            print(f"{page}: pictures in {options.output / name}", *found, sep="\n  ")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
