"""Records with a line for each scored image, with which an interrupted run continues."""

import json
import os

import joblib


def append(path, rows):
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_record(path, settings):
    """Return the finished images by file name; a record with other settings is an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):  # the last line is incomplete after a crash
        os.truncate(path, whole)
    if not whole:
        append(path, [settings])
        return {}
    first, *rows = (json.loads(line) for line in content[:whole].splitlines())
    changed = [k for k in settings | first if settings.get(k) != first.get(k)]
    if changed:
        old = ", ".join(f"{k}={first.get(k)!r} (now {settings.get(k)!r})" for k in changed)
        raise SystemExit(
            f"{path} was written with {old}. Use the same settings, choose another --output, or "
            "remove the file."
        )
    return {row["file"]: row for row in rows}


def weights_hash(*modules):
    return joblib.hash([v.cpu().numpy() for m in modules for v in m.state_dict().values()])
