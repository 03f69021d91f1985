"""How pages look in a browser: nothing is wider than the window, and every picture is there.

    python .ci/check_pages.py docs/_build/html report.html [--pictures FOLDER]

Opens HTML files, and those of folders, in headless Chromium, in windows as wide as those of a
desktop and of a phone. Lists what is wrong with them and ends with status 1 if there is anything,
with 2 if there is no browser. With `--pictures`, each page is also saved as it looks.
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
NO_BROWSER = 2  # status
WIDTHS = {"desktop": 1280, "phone": 390}  # pixels
HEIGHT = 900
AT_ONCE = 8  # pages in one run of the browser
# Frames, because a browser's own window has a least width; one pixel is a rounding
PAGE = """<meta charset="utf-8">%s<pre id="found"></pre><script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    const wrong = [];
    if (!page.body.innerText.trim()) wrong.push("is empty");
    if (root.scrollWidth > root.clientWidth + 1)
      wrong.push(`is ${root.scrollWidth} pixels wide in a window of ${root.clientWidth}`);
    for (const image of page.images)
      if (!(image.complete && image.naturalWidth))
        wrong.push(`lacks the picture ${(image.getAttribute("src") || "").slice(0, 80)}`);
    return wrong;
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>"""


def browser():
    """The path of the first browser that is there, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def faults(pages, width):
    """What is wrong with each page in a window of that width, a list of sentences for each."""
    frames = "".join(
        f'<iframe src="{html.escape(page.resolve().as_uri())}" width="{width}" height="{HEIGHT}" '
        'style="border:0"></iframe>'
        for page in pages
    )
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "pages.html"
        wrapper.write_text(PAGE % frames, encoding="utf-8")
        shown = run(folder, "--dump-dom", wrapper.as_uri()).stdout
    match = re.search(r'<pre id="found">(.+?)</pre>', shown, re.S)
    if match is None:
        raise RuntimeError(f"The browser did not get to the end of {', '.join(map(str, pages))}.")
    return json.loads(html.unescape(match[1]))


def picture(page, width, path):
    """Save how a page looks, as PNG."""
    with tempfile.TemporaryDirectory() as folder:
        size = f"--window-size={width},{4 * HEIGHT}"
        run(folder, size, f"--screenshot={path.resolve()}", page.resolve().as_uri())


def run(folder, *words):
    """Headless Chromium with an empty profile; frames of files may be looked into."""
    flags = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --hide-scrollbars"
    command = [browser(), *flags.split(), f"--user-data-dir={folder}/profile", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="HTML files, or folders of them")
    parser.add_argument("--pictures", type=Path, help="folder for what the pages look like")
    args = parser.parse_args()
    if browser() is None:
        print(f"No browser, so no page was looked at: install one of {', '.join(BROWSERS)}.")
        return NO_BROWSER
    pages = [
        page
        for path in args.paths
        for page in (sorted(path.rglob("*.html")) if path.is_dir() else [path])
    ]
    wrong = 0
    for device, width in WIDTHS.items():
        for i in range(0, len(pages), AT_ONCE):
            some = pages[i : i + AT_ONCE]
            for page, found in zip(some, faults(some, width)):
                wrong += len(found)
                for fault in found:
                    print(f"{page}: {device}: {fault}")
                if args.pictures is not None:
                    args.pictures.mkdir(parents=True, exist_ok=True)
                    picture(page, width, args.pictures / f"{page.stem}-{device}.png")
    print(f"{len(pages)} pages looked at, {wrong} faults")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
