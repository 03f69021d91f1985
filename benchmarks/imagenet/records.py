"""What was scored is kept, a line for each image, so that a run that was stopped goes on."""

import json
import os

import joblib


def append(path, rows):
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def read_record(path, settings):
    """Images finished earlier, by file; a new record is begun, one of other settings refused."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):  # a crash cut the last line off
        os.truncate(path, whole)
    if not whole:
        append(path, [settings])
        return {}
    first, *rows = (json.loads(line) for line in content[:whole].splitlines())
    changed = [k for k in settings | first if settings.get(k) != first.get(k)]
    if changed:
        was = ", ".join(f"{k}={first.get(k)!r} (now {settings.get(k)!r})" for k in changed)
        raise SystemExit(
            f"{path} was made with {was}. Go on with those settings, choose another --output, or "
            "remove the file."
        )
    return {row["file"]: row for row in rows}


def weights_hash(*modules):
    return joblib.hash([v.cpu().numpy() for m in modules for v in m.state_dict().values()])
