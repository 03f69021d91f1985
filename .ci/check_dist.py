"""Check that wheel and sdist contain the whole package and its licence, and nothing else."""

import sys
import tarfile
import zipfile
from pathlib import Path

dist, root = Path(sys.argv[1]), Path(__file__).parents[1]
(wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
package = {
    path.relative_to(root).as_posix()
    for path in (root / "skaocls").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}

with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
metadata = {name for name in names if name.split("/")[0].endswith(".dist-info")}
assert names - metadata == package, f"{wheel.name}: {sorted((names - metadata) ^ package)}"
assert any(name.endswith("/licenses/LICENSE") for name in metadata), f"{wheel.name} has no LICENSE"

with tarfile.open(sdist) as archive:
    names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
extra = {n for n in names - package if "/" in n and not n.startswith("skaocls.egg-info/")}
assert package <= names and not extra, f"{sdist.name}: {sorted(package - names | extra)}"
assert {"LICENSE", "README.md", "CHANGELOG.md"} <= names, f"{sdist.name}: {sorted(names)}"
