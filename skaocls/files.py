"""Find, download, read and write files of model weights.

Loading never executes code from a file. Files are written completely or not at all. The source of
weights is a file, a folder, or a repository ``owner/name`` on the Hugging Face hub. The library
``huggingface_hub`` manages the cache (``HF_HOME``), offline mode (``HF_HUB_OFFLINE``) and access
tokens (``HF_TOKEN``).
"""

import logging
import os
import re
import socket
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread, Timer
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass
from uuid import uuid4
from zipfile import ZipFile, is_zipfile

import torch
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the HTTP library used by the client
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from numpy.typing import ArrayLike
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skaocls.devices import own_torch_state

T = TypeVar("T")
_last_attempt: tuple[float, str | None] | None = None  # time and result of connecting to the hub
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
# Files that accelerate and transformers store next to the weights to resume training.
TRAINING_STATE = re.compile(
    r"(.*/)?(optimizer|scheduler|sampler|scaler|random_states|rng_state|training_args|dl_state_dict)"
)
WRAPPERS = ("ema", "model_ema", "model", "module", "state_dict", "model_state_dict")
PREFIX = re.compile(r"^((module|model)\.)+")  # added by DistributedDataParallel and training loops
COMPILED = "_orig_mod."  # added by torch.compile, anywhere in a key
MAX_MAPPED_BYTES = 2**26  # while tensors are copied, at most about this much of the file is mapped
HUB_NOTICE_SECONDS = 3  # if the hub needs longer to answer, a message is logged
CONNECT_SECONDS = 3  # if the hub does not accept a connection within this time, it is unreachable
RETRY_SECONDS = 30  # for this time, the result of the last attempt to connect is used again
MAX_EXPANSION = 8  # largest ratio of tensor bytes to file bytes; above 1, as tensors can overlap
MAX_LISTED = 5  # largest number of keys that an error message lists
OFFLINE_ADVICE = (
    "Call this while online, or pass a local file or folder. With HF_HUB_OFFLINE=1, only cached "
    "files are used, and the network is not."
)
OTHER_OBJECTS = (
    "{path} contains objects other than tensors, which are never loaded: {kind}. If you trust the "
    "author of the file, copy the weights into a new file with the following code, which executes "
    "code from the file. Replace 'model' by the key of the weights, such as 'ema' or 'state_dict':"
    "\nimport torch; torch.save(torch.load({path!r}, map_location='cpu', weights_only=False)"
    "['model'], 'weights.pt')"
)
PICKLED = (
    "{path} contains a pickled Python object{kind}, which is never loaded here, because loading it "
    "can execute code. If you trust the author of the file, load the object with {load}. To store "
    "a classifier so that from_pretrained can load it, call clf.save_pretrained(folder)."
)
# First bytes of pickles (`torch.save` uses version 2), and of files that joblib compressed
PICKLES = tuple(b"\x80" + bytes([version]) for version in (3, 4, 5))
COMPRESSED = (b"x\x01", b"x^", b"x\x9c", b"x\xda", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"]\x00")
HUB_ERRORS: dict[type[Exception], str] = {  # the first type that matches determines the message
    GatedRepoError: "{where} is gated: ask the owner for access and pass token.",
    RepositoryNotFoundError: "{where} does not exist, or is private. If it is private, pass token. "
    "No local file or folder has this name either.",
    RevisionNotFoundError: "{where} does not exist: there is no such revision.",
    LocalEntryNotFoundError: "{where}: {what} is not in the cache, and the hub cannot be reached "
    "or HF_HUB_OFFLINE is set. No local file or folder has this name. {advice}",
    EntryNotFoundError: "{where} has no file {what}.",
    Exception: "{where}: {what} could not be fetched or cached: {exc}",
}


def find_file(
    source: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
) -> Path:
    """Return the path of a weight file; download the file if necessary.

    The source is a file, a folder, or a hub repository ``owner/name``. `filename` is optional if
    the source has only one weight file. `revision` is a branch, tag or commit.
    """
    path = Path(source)
    if path.exists() and revision is not None:
        raise ValueError(
            f"revision={revision!r} selects a version of a hub repository, but {path} is on this "
            "machine. Remove revision."
        )
    if path.is_file():
        if filename not in (None, path.name):
            raise FileNotFoundError(f"{path} is a file and contains no file {filename!r}.")
        return path
    if path.is_dir():
        files = weight_files([p.name for p in path.iterdir()])
        name = filename or single_file(files, f"The folder {path}")
        if not (path / name).is_file():
            raise FileNotFoundError(f"The folder {path} has no file {name!r}.")
        return path / name
    if isinstance(source, os.PathLike) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise FileNotFoundError(
            f"{str(source)!r} is neither a file nor a folder, as seen from {os.getcwd()!r}. Pass "
            "an existing file or folder, or the name of a hub repository, 'owner/name'."
        )
    return download(source, filename, revision, token)


def download(
    repo: str, filename: str | None, revision: str | None, token: str | bool | None
) -> Path:
    """Return the path of a file from a hub repository; download the file if it is not cached."""
    where = f"The hub repository {repo!r}" + (f" at revision {revision!r}" if revision else "")
    problem = connection_problem()
    if filename is None:
        if problem is not None:
            raise OSError(
                f"{where}: the hub cannot be reached ({problem}), and no local file or folder has "
                f"this name. {OFFLINE_ADVICE}"
            )
        list_files = partial(HfApi().list_repo_files, repo, revision=revision, token=token)
        files = ask_hub(where, "the list of its files", list_files)
        filename = single_file(weight_files(files), where)
    if re.search(r"^/|[\\:]|(^|/)\.\.(/|$)", filename):
        raise OSError(
            f"{where}: the file name {filename!r} is refused: it leads out of the repository."
        )
    fetch = partial(hf_hub_download, repo, filename, revision=revision, token=token)
    return Path(ask_hub(where, repr(filename), partial(fetch, local_files_only=bool(problem))))


def connection_problem() -> str | None:
    """Try to connect to the hub; return the reason if this fails, and None otherwise.

    Without a network, the hub client would repeat every request for almost half a minute.
    """
    global _last_attempt
    if constants.HF_HUB_OFFLINE:  # the client itself never connects
        return None
    if _last_attempt is None or time.monotonic() > _last_attempt[0] + RETRY_SECONDS:
        problem = try_to_connect(constants.ENDPOINT)
        _last_attempt = time.monotonic(), problem
    return _last_attempt[1]


def try_to_connect(url: str) -> str | None:
    """Connect to the host of a URL, or to the proxy for this URL; return the reason if it fails."""
    target, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(target.netloc):
        target = urlsplit(proxy)
    host, port = target.hostname, target.port or (80 if target.scheme == "http" else 443)
    if host is None:
        return None  # the client reports that the address is invalid
    results: SimpleQueue[str | None] = SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((host, port), CONNECT_SECONDS).close()
            results.put(None)
        except OSError as exc:
            results.put(f"{host}: {exc}")

    Thread(target=connect, daemon=True).start()  # a thread, because the name server may not answer
    try:
        return results.get(timeout=CONNECT_SECONDS)
    except Empty:
        return f"{host} did not answer within {CONNECT_SECONDS} seconds"


def weight_files(names: list[str]) -> list[str]:
    """Return those of the given file names that are weight files."""
    visible = [name for name in names if not any(p.startswith(".") for p in name.split("/"))]
    return [name for name in visible if name.endswith(SUFFIXES) and not TRAINING_STATE.match(name)]


def single_file(names: list[str], where: str) -> str:
    """Return the only name in the list; raise an error if the list is empty or has more names."""
    if len(names) == 1:
        return names[0]
    found = f"several: {', '.join(sorted(names))}" if names else "no weights file"
    raise OSError(f"{where} has {found}. Pass filename.")


def ask_hub(where: str, what: str, function: Callable[..., T], *args: str | int | float) -> T:
    """Call a function of the hub client; turn every failure into an OSError with an explanation.

    The client repeats failed requests silently. After `HUB_NOTICE_SECONDS`, a message is logged.
    """
    message = (
        f"{where}: waiting for the hub to send {what}. If you have no network, set "
        "HF_HUB_OFFLINE=1 to use only cached files, or pass a local file or folder."
    )
    notice = Timer(HUB_NOTICE_SECONDS, logging.getLogger("skaocls").warning, [message])
    notice.daemon = True
    notice.start()
    try:
        return function(*args)
    except (HTTPError, HFValidationError, OSError) as exc:
        message = next(text for kind, text in HUB_ERRORS.items() if isinstance(exc, kind))
        error = FileNotFoundError if isinstance(exc, EntryNotFoundError) else OSError
        text = message.format(where=where, what=what, exc=exc, advice=OFFLINE_ADVICE)
        raise error(text) from exc
    finally:
        notice.cancel()


@own_torch_state(grad=True)
def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a weight file.

    Loading never executes code from the file. If the file stores the state dict under a key such as
    ``"ema"``, ``"model"`` or ``"state_dict"``, the first such key in `WRAPPERS` is used. Prefixes
    that DistributedDataParallel, torch.compile or training loops add to keys are removed. The
    tensors are copies, and half precision is converted to float32. The peak memory is only slightly
    larger than the returned tensors.
    """
    path = Path(path)
    mapped = map_state_dict(path)
    copies: dict[str, Tensor] = {}
    mapped_bytes = 0
    for key in list(mapped):
        is_half = mapped[key].is_floating_point() and mapped[key].itemsize < 4
        dtype = torch.float32 if is_half else mapped[key].dtype
        name = PREFIX.sub("", key.replace(COMPILED, ""))
        if name in copies:
            raise ValueError(f"{path} contains {name!r} under several names, such as {key!r}.")
        copies[name] = mapped[key].to(dtype, copy=True)
        mapped_bytes += mapped[key].nbytes
        if mapped_bytes > MAX_MAPPED_BYTES and (path.suffix == ".safetensors" or is_zipfile(path)):
            mapped, mapped_bytes = map_state_dict(path), 0  # frees the memory of the old mapping
    return copies


def map_state_dict(path: Path) -> dict[str, Tensor]:
    """Load and unwrap a state dict; memory-map the file if the format allows it."""
    try:
        state: object = load_file(path) if path.suffix == ".safetensors" else load_pickle(path)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as exc:  # damaged files can raise errors of many types
        # without `from exc`, because torch advises to load the file unsafely
        raise ValueError(why_unreadable(path, str(exc) or type(exc).__name__)) from None
    while isinstance(state, dict):
        inner = [state[key] for key in WRAPPERS if isinstance(state.get(key), dict)]
        if not inner:
            break
        state = inner[0]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        found = list(state)[:MAX_LISTED] if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"{path} must contain a state dict, which maps names to tensors, but contains {found}. "
            f"The state dict may also be stored under one of the keys {', '.join(WRAPPERS)}."
        )
    special = [k for k, v in state.items() if v.layout != torch.strided or v.device.type != "cpu"]
    if special:
        raise ValueError(f"{path} is refused: {special[0]!r} is not a dense tensor on the CPU.")
    if (n_bytes := sum(v.nbytes for v in state.values())) > MAX_EXPANSION * path.stat().st_size:
        raise ValueError(
            f"{path} is refused: its tensors of {n_bytes} bytes exceed the file size by more than "
            f"a factor of {MAX_EXPANSION}."
        )
    return state


def why_unreadable(path: Path, reason: str) -> str:
    """Return a message for a file that torch or safetensors cannot load as tensors."""
    if refused := re.search(r"GLOBAL ([\w.]+) was not", reason):
        if not refused[1].startswith("skaocls."):
            return OTHER_OBJECTS.format(path=str(path), kind=refused[1])
        load = f"torch.load({str(path)!r}, weights_only=False)"
        return PICKLED.format(path=path, kind=f" ({refused[1]})", load=load)
    if is_pickle(path):
        return PICKLED.format(path=path, kind="", load=f"joblib.load({str(path)!r})")
    if torch_reason := re.search(r"WeightsUnpickler error:\s*(.+)", reason):
        reason = torch_reason[1]  # without the advice to load the file unsafely
    return (
        f"{path} is not a readable file of weights. The file is truncated, has another format, or "
        f"contains objects other than tensors, which are never loaded ({reason.splitlines()[0]})."
    )


def is_pickle(path: Path) -> bool:
    """Return whether joblib or pickle wrote a file that is no safetensors file."""
    with open(path, "rb") as file:
        return file.read(8).startswith(PICKLES + COMPRESSED)


def load_pickle(path: Path) -> object:
    """Load a file that ``torch.save`` wrote; never execute code from the file."""
    if is_pickle(path):
        raise ValueError("torch.save did not write it")
    mmap = is_zipfile(path)  # files from torch before version 1.6 cannot be memory-mapped
    if mmap:
        with ZipFile(path) as file:
            unpacked = sum(part.file_size for part in file.infolist())
        if unpacked > MAX_EXPANSION * path.stat().st_size:
            raise ValueError(f"it unpacks to {unpacked} bytes")
    with torch.serialization.safe_globals([Namespace]):  # training scripts often save a Namespace
        loaded: object = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    return loaded


def assign(
    module: nn.Module,
    state: Mapping[str, Tensor],
    ignore: Iterable[str] = (),
    source: str = "The state dict",
) -> None:
    """Replace all weights of a module by the given tensors; convert floats to float32."""
    weights = {
        name: tensor if tensor.dtype == torch.int64 else tensor.float()
        for name, tensor in state.items()
        if name not in ignore
    }
    try:
        module.load_state_dict(weights, assign=True)
    except RuntimeError as exc:  # torch lists missing keys, unexpected keys and different shapes
        raise ValueError(f"{source} does not fit {type(module).__name__}: {exc}") from exc
    module.requires_grad_(True)


def tensor_writer(tensors: Mapping[str, ArrayLike | Tensor]) -> Callable[[str], None]:
    """Return a function that takes a path and writes the tensors to it in safetensors format."""
    made = {k: torch.as_tensor(v).detach().cpu().contiguous() for k, v in tensors.items()}
    return lambda path: save_file(made, path, {"format": "pt"})


def check_writable(path: Path, name: str) -> None:
    """Raise an OSError if a file cannot be written; its folder may not exist yet.

    `name` is the name of the path in the error message.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder, but a file is expected")
        probe = temporary_path(nearest_folder(path.parent) / path.name)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as exc:
        raise OSError(f"{name} cannot be written to: {exc}") from exc


def nearest_folder(folder: Path) -> Path:
    """Return the folder, or the nearest parent folder that exists."""
    try:
        folder.stat()
    except FileNotFoundError:
        return nearest_folder(folder.parent)
    return folder


def temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex}")


def write_all(folder: Path, writers: Mapping[str, Callable[[str], object]]) -> None:
    """Write several files to an existing folder; write each file completely or not at all.

    Each writer gets the path of an empty temporary file. After all writers have finished, each file
    gets its final name.
    """
    temporary = {name: temporary_path(folder / name) for name in writers}
    try:
        for name, path in temporary.items():
            path.touch(exist_ok=False)
            mode = path.stat().st_mode  # follows the umask, but safetensors would change the mode
            writers[name](str(path))
            path.chmod(mode)
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
        for name, path in temporary.items():
            os.replace(path, folder / name)
    except BaseException:
        for path in temporary.values():
            path.unlink(missing_ok=True)
        raise
