"""Files: found in folders and on the hub, read without executing code, written whole or not at all.

Sources are a file, a folder, or a hub repository ``owner/name``; for the latter
``huggingface_hub`` decides about cache, offline mode and tokens (``HF_HOME``, ``HF_HUB_OFFLINE``,
``HF_TOKEN``).
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath
from threading import Timer
from typing import Any, TypeVar
from zipfile import ZipFile, is_zipfile

import torch
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the HTTP library that the client uses
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from skaocls.devices import own_torch_state

T = TypeVar("T")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
INDEX = ".index.json"  # what a file of weights is called with, if it lies there in shards
SHARD = re.compile(r"-\d+-of-\d+(?=\.)")
# what accelerate and transformers keep beside the weights, to go on training
TRAINING_STATE = re.compile(
    r"(.*/)?(optimizer|scheduler|sampler|scaler|random_states|rng_state|training_args|dl_state_dict)"
)
WRAPPERS = ("ema", "model_ema", "model", "module", "state_dict", "model_state_dict")
PREFIX = re.compile(r"^((module|model)\.)+")  # of DistributedDataParallel and the like
COMPILED = "_orig_mod."  # of torch.compile, on the whole or on parts
MAPPED_BYTES = 2**26  # of a file that are in memory beside their copies
PATIENCE = 3  # seconds before one is told what the hub is asked for
LARGER = 8  # times the size of a file may be what it unpacks to, as tensors that are one do
SHOWN = 5  # keys of each kind that an error lists


def find_file(
    source: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    suffixes: tuple[str, ...] = SUFFIXES,
) -> Path:
    """Path of a file of weights, downloaded if need be.

    Parameters
    ----------
    source : str or path
        A file, a folder, or a hub repository ``owner/name``.
    filename : str, default=None
        File within the folder or repository. May be left out if only one there is a weights file;
        hidden files and what training keeps beside it (``optimizer.bin``, ``scheduler.bin`` and the
        like) do not count. Of weights in shards it is their index,
        ``*.safetensors.index.json``.
    revision : str, default=None
        Branch, tag or commit of the repository.
    token : str or bool, default=None
        As in ``huggingface_hub``.
    suffixes : tuple of str
        What counts as a weights file.

    Returns
    -------
    path : Path

    Raises
    ------
    OSError
        If there is no such file, repository or revision, or the hub cannot be reached.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from skaocls.files import find_file
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> (folder / "model.safetensors").touch()
    >>> find_file(folder).name
    'model.safetensors'
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        name = filename or the_only(
            weights_among([p.name for p in path.iterdir()], suffixes), f"The folder {path}"
        )
        if not (path / name).is_file():
            raise FileNotFoundError(f"The folder {path} has no file {name!r}.")
        return path / name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise OSError(
            f"{str(source)!r} is neither a file, nor a folder, nor a hub repository 'owner/name'."
        )
    return download(str(source), filename, revision, token, suffixes)


def download(
    repo: str,
    filename: str | None,
    revision: str | None,
    token: str | bool | None,
    suffixes: tuple[str, ...],
) -> Path:
    """A file of a hub repository, from the cache if it is there."""
    where = f"The hub repository {repo!r}" + (f" at revision {revision!r}" if revision else "")
    at = {"revision": revision, "token": token}
    if filename is None:
        files = ask_hub(where, "the list of its files", HfApi().list_repo_files, repo, **at)
        filename = the_only(weights_among(files, suffixes), where)
    if re.search(r"^/|[\\:]|(^|/)\.\.(/|$)", filename):
        raise OSError(f"{where}: the file name {filename!r} leads out of it, and is refused.")
    path = Path(ask_hub(where, repr(filename), hf_hub_download, repo, filename, **at))
    for shard in shards_of(path):
        name = str(PurePosixPath(filename).parent / shard)
        ask_hub(where, repr(name), hf_hub_download, repo, name, **at)
    return path


def weights_among(names: list[str], suffixes: tuple[str, ...]) -> list[str]:
    """Files of weights, of those in shards the index."""
    endings = (*suffixes, *(suffix + INDEX for suffix in suffixes))
    shown = [n for n in names if not any(part.startswith(".") for part in n.split("/"))]
    found = [n for n in shown if n.endswith(endings) and not TRAINING_STATE.match(n)]
    return [n for n in found if not (SHARD.search(n) and SHARD.sub("", n) + INDEX in found)]


def shards_of(path: Path) -> list[str]:
    """Names of the files that an index lists; none if this is no index."""
    if not path.name.endswith(INDEX):
        return []
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise ValueError(f"{path} is no readable index of weights in shards: {exc!r}.") from exc
    for shard in shards:
        if PurePosixPath(shard).name != shard or not shard.endswith(SUFFIXES):
            raise ValueError(f"{path} names {shard!r}, which is no file of weights beside it.")
    return shards


def ask_hub(where: str, what: str, function: Callable[..., T], *args: Any, **params: Any) -> T:
    """Call the client; whatever goes wrong is an OSError that says what and where.

    The client retries without a word, so after a few seconds a log message says what it does.
    """
    message = (
        f"{where}: still asking the hub for {what}. Without a network, HF_HUB_OFFLINE=1 reads what "
        "is in the cache and asks nobody; a folder or file can be given instead."
    )
    notice = Timer(PATIENCE, logging.getLogger("skaocls").warning, [message])
    notice.daemon = True
    notice.start()
    try:
        return function(*args, **params)
    except GatedRepoError as exc:
        raise OSError(f"{where} is gated: ask its owner for access and pass token.") from exc
    except RepositoryNotFoundError as exc:
        raise OSError(f"{where} does not exist, or is private: then pass token.") from exc
    except RevisionNotFoundError as exc:
        raise OSError(f"{where} does not exist: there is no such revision.") from exc
    except LocalEntryNotFoundError as exc:
        raise FileNotFoundError(
            f"{where}: {what} is not in the cache, and the hub cannot be reached or "
            "HF_HUB_OFFLINE forbids it. Pass a folder or file that holds it, or fetch it once "
            "with a network."
        ) from exc
    except EntryNotFoundError as exc:
        raise FileNotFoundError(f"{where} has no file {what}.") from exc
    except (HTTPError, HFValidationError, OSError) as exc:
        raise OSError(f"{where}: {what} could not be fetched or cached: {exc}") from exc
    finally:
        notice.cancel()


def the_only(names: list[str], where: str) -> str:
    if len(names) == 1:
        return names[0]
    found = "no weights file" if not names else f"several: {', '.join(sorted(names))}"
    raise OSError(f"{where} has {found}. Pass filename.")


@own_torch_state(grad=True)
def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, or of shards, in memory.

    Nothing in the file is executed. A state dict under ``"ema"``, ``"model"``, ``"module"`` or
    ``"state_dict"``, the first of them that is there, is unwrapped, and names lose what
    DistributedDataParallel, torch.compile and training loops put before them (``"module."``,
    ``"_orig_mod."``, ``"model."``). The tensors do not depend on the file any more;
    reading takes little more memory than they do.

    Parameters
    ----------
    path : path
        A file of weights, or the index of weights in shards, which lie beside it.

    Returns
    -------
    state_dict : dict of str to Tensor
        Half precision comes as float32, other types as they are.

    Raises
    ------
    OSError
        If the file, or a shard, is not there.
    ValueError
        If the file is cut off, is no such file, or holds anything but tensors.
    """
    path = Path(path)
    if path.name.endswith(INDEX):
        merged: dict[str, Tensor] = {}
        for shard in shards_of(path):
            if not (path.parent / shard).is_file():
                raise FileNotFoundError(f"{path} names {shard!r}, which is not beside it.")
            merged |= read_state_dict(path.parent / shard)
        return merged
    mapped = map_state_dict(path)
    copied: dict[str, Tensor] = {}
    seen = 0
    for key in list(mapped):
        small = mapped[key].is_floating_point() and mapped[key].itemsize < 4
        dtype = torch.float32 if small else mapped[key].dtype
        name = PREFIX.sub("", key.replace(COMPILED, ""))
        if name in copied:
            raise ValueError(f"{path} holds {name!r} under several names, {key!r} among them.")
        copied[name] = mapped[key].to(dtype, copy=True)
        seen += mapped[key].nbytes
        if seen > MAPPED_BYTES and (path.suffix == ".safetensors" or is_zipfile(path)):
            mapped, seen = map_state_dict(path), 0  # gives back the pages that were read
    return copied


def map_state_dict(path: Path) -> dict[str, Tensor]:
    """As :func:`read_state_dict`, but still mapped from the file, where its format allows that."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state: Any = {key: file.get_tensor(key) for key in list(file.keys())}
        else:
            # torch's format before version 1.6 cannot be mapped
            mmap = is_zipfile(path)
            if mmap:
                with ZipFile(path) as file:
                    unpacked = sum(part.file_size for part in file.infolist())
                if unpacked > LARGER * path.stat().st_size:
                    raise ValueError(f"it unpacks to {unpacked} bytes")
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as exc:  # damaged files raise all sorts
        if refused := re.search(r"GLOBAL ([\w.]+) was not", str(exc)):
            raise ValueError(objects_in(path, refused[1])) from exc
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise ValueError(
            f"{path} is no readable file of weights: it is cut off, of another format, or holds "
            f"objects other than tensors, which are never loaded ({reason})."
        ) from exc
    while isinstance(state, dict):
        inside = [state[key] for key in WRAPPERS if isinstance(state.get(key), dict)]
        if not inside:
            break
        state = inside[0]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        found = list(state)[:SHOWN] if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{path} holds no state dict, a mapping of names to tensors, but {found}. It may lie "
            f"under one of {', '.join(WRAPPERS)}."
        )
    strange = [k for k, v in state.items() if v.layout != torch.strided or v.device.type != "cpu"]
    claimed = 0 if strange else sum(v.nbytes for v in state.values())
    if strange or claimed > LARGER * path.stat().st_size:
        told = f"{strange[0]!r} is no plain tensor" if strange else f"{claimed} bytes of tensors"
        raise ValueError(f"{path} is refused: it claims more than it holds ({told}).")
    return state


def objects_in(path: Path, kind: str) -> str:
    """What to say of a file that holds an object of that kind."""
    risk, line = "", "import torch; "
    safe = kind == "argparse.Namespace"  # whose loading runs nothing
    if safe:
        line += "import argparse; torch.serialization.add_safe_globals([argparse.Namespace]); "
    else:
        risk = ", but only if you trust who made it, because this runs whatever code it holds"
    loaded = f"torch.load({str(path)!r}, map_location='cpu', weights_only={safe})"
    return (
        f"{path} holds objects other than tensors, which are never loaded: {kind}. Write its "
        f"weights into a file of their own{risk}; they are under 'model' here, elsewhere under "
        f"'ema', 'state_dict' or the like:\n{line}torch.save({loaded}['model'], 'weights.pt')"
    )


def assign(
    module: nn.Module,
    state: Mapping[str, Tensor],
    ignore: Iterable[str] = (),
    source: str = "The state dict",
) -> None:
    """Give a module its weights, in float32 and without copying those that are; all must agree.

    Raises
    ------
    ValueError
        Lists missing and unexpected keys and shapes that differ.
    """
    want = {k: tuple(v.shape) for k, v in module.state_dict().items()}
    have = {k: tuple(v.shape) for k, v in state.items() if k not in ignore}
    wrong = {
        "missing": [k for k in want if k not in have],
        "unexpected": [k for k in have if k not in want],
        "of another shape": [
            f"{k} {have[k]}, not {want[k]}" for k in want if k in have and have[k] != want[k]
        ],
    }
    if any(wrong.values()):
        lines = [f"{source} does not fit {type(module).__name__}:"]
        for kind, keys in wrong.items():
            if keys:
                more = f", ... ({len(keys)} in all)" if len(keys) > SHOWN else ""
                lines.append(f"  {kind}: {', '.join(keys[:SHOWN])}{more}")
        raise ValueError("\n".join(lines))
    weights = {k: state[k] if state[k].dtype == torch.int64 else state[k].float() for k in want}
    module.load_state_dict(weights, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def tensor_writer(tensors: Mapping[str, Any]) -> Callable[[str], None]:
    """What writes arrays and tensors as safetensors, for :func:`write_all`."""
    made = {k: torch.as_tensor(v).detach().cpu().contiguous() for k, v in tensors.items()}
    return lambda path: save_file(made, path, {"format": "pt"})


def write_all(folder: Path, writers: Mapping[str, Callable[[str], object]]) -> None:
    """Call each write(temporary path), and when all are done put the files in place."""
    temporary: dict[str, str] = {}
    try:
        for name, write in writers.items():
            handle, temporary[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            os.close(handle)
            write(temporary[name])
            with open(temporary[name], "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary[name], 0o644)
        for name, path in temporary.items():
            os.replace(path, folder / name)
    except BaseException:
        for path in temporary.values():
            Path(path).unlink(missing_ok=True)
        raise
