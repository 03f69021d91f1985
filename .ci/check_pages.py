"""Check in a browser that no page is wider than the window, and that no image is missing.

    python .ci/check_pages.py docs/_build/html report.html [--pictures FOLDER]

Opens HTML files, also those in folders, in headless Chromium, in windows as wide as a desktop's and
a phone's. Prints the faults and exits with status 1 if there are any, or with 2 if there is no
browser.
"""

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NO_BROWSER = 2  # exit status
WIDTHS = {"desktop": 1280, "phone": 390}  # pixels
HEIGHT = 900
BATCH_SIZE = 8  # pages in one run of the browser
# Frames, because a browser window has a minimum width. One pixel is tolerated as rounding.
PAGE = """<meta charset="utf-8">%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    const faults = [];
    if (!page.body.innerText.trim()) faults.push("is empty");
    if (root.scrollWidth > root.clientWidth + 1)
      faults.push(`is ${root.scrollWidth} pixels wide in a window of ${root.clientWidth}`);
    for (const image of page.images)
      if (!(image.complete && image.naturalWidth))
        faults.push(`lacks the picture ${(image.getAttribute("src") || "").slice(0, 80)}`);
    return faults;
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def browser():
    """Return the path of the first browser that is installed, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def find_faults(pages, width):
    """Return a list of faults for each page, in a window of some width."""
    frames = "".join(
        f'<iframe src="{html.escape(page.resolve().as_uri())}" width="{width}" height="{HEIGHT}" '
        'style="border:0"></iframe>'
        for page in pages
    )
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "pages.html"
        wrapper.write_text(PAGE % frames, encoding="utf-8")
        dom = run_browser(folder, "--dump-dom", wrapper.as_uri()).stdout
    match = re.search(r'<pre id="found">(.+?)</pre>', dom, re.S)
    if match is None:
        raise RuntimeError(f"The browser did not finish loading {', '.join(map(str, pages))}.")
    return json.loads(html.unescape(match[1]))


def screenshot(page, width, path):
    """Save a page as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        size = f"--window-size={width},{4 * HEIGHT}"
        run_browser(folder, size, f"--screenshot={path.resolve()}", page.resolve().as_uri())


def run_browser(folder, *args):
    """Run headless Chromium with an empty profile; scripts may access frames of files."""
    flags = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --hide-scrollbars"
    command = [browser(), *flags.split(), f"--user-data-dir={folder}/profile", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="HTML files or folders")
    parser.add_argument("--pictures", type=Path, help="folder for screenshots of the pages")
    args = parser.parse_args()
    if browser() is None:
        print(f"No page was checked, because there is no browser: install {' or '.join(BROWSERS)}.")
        return NO_BROWSER
    pages = [
        page
        for path in args.paths
        for page in (sorted(path.rglob("*.html")) if path.is_dir() else [path])
    ]
    n_faults = 0
    for device, width in WIDTHS.items():
        for i in range(0, len(pages), BATCH_SIZE):
            batch = pages[i : i + BATCH_SIZE]
            for page, faults in zip(batch, find_faults(batch, width)):
                n_faults += len(faults)
                for fault in faults:
                    print(f"{page}: {device}: {fault}")
                if args.pictures is not None:
                    args.pictures.mkdir(parents=True, exist_ok=True)
                    screenshot(page, width, args.pictures / f"{page.stem}-{device}.png")
    print(f"{len(pages)} pages checked, {n_faults} faults")
    return bool(n_faults)


if __name__ == "__main__":
    sys.exit(main())
