"""Weights from files, folders and the hub: found, read without executing code, checked.

Sources are a file, a folder, or a hub repository ``owner/name``; for the latter
``huggingface_hub`` decides about cache, offline mode and tokens (``HF_HOME``, ``HF_HUB_OFFLINE``,
``HF_TOKEN``).
"""

import re
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import is_zipfile

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
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from skaocls.prior import AnyOrderPrior, rope_table

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
PUBLISHED_GRID = (16, 16)
PUBLISHED_HEAD_DIM = 64
SHOWN = 5  # keys of each kind that an error lists


def find_file(source, filename=None, *, revision=None, token=None, suffixes=SUFFIXES) -> Path:
    """Path of a file of weights, downloaded if need be.

    Parameters
    ----------
    source : str or path
        A file, a folder, or a hub repository ``owner/name``.
    filename : str, default=None
        File within the folder or repository. May be left out if only one there is a weights file.
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
    >>> from skaocls.loading import find_file
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
            [p.name for p in path.iterdir() if p.suffix in suffixes], f"The folder {path}"
        )
        if not (path / name).is_file():
            raise FileNotFoundError(f"The folder {path} has no file {name!r}.")
        return path / name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise OSError(
            f"{str(source)!r} is neither a file, nor a folder, nor a hub repository 'owner/name'."
        )
    return download(str(source), filename, revision, token, suffixes)


def download(repo: str, filename, revision, token, suffixes) -> Path:
    """A file of a hub repository, from the cache if it is there."""
    where = f"The hub repository {repo!r}" + (f" at revision {revision!r}" if revision else "")
    at = {"revision": revision, "token": token}
    if filename is None:
        files = ask_hub(where, "the list of its files", HfApi().list_repo_files, repo, **at)
        filename = the_only([f for f in files if f.endswith(suffixes)], where)
    return Path(ask_hub(where, repr(filename), hf_hub_download, repo, filename, **at))


def ask_hub(where: str, what: str, function: Callable, *args, **params):
    """Call the client; whatever goes wrong is an OSError that says what and where."""
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
            "HF_HUB_OFFLINE forbids it."
        ) from exc
    except EntryNotFoundError as exc:
        raise FileNotFoundError(f"{where} has no file {what}.") from exc
    except (HTTPError, HFValidationError, OSError) as exc:
        raise OSError(f"{where}: {what} could not be fetched or cached: {exc}") from exc


def the_only(names: list[str], where: str) -> str:
    if len(names) == 1:
        return names[0]
    found = "no weights file" if not names else f"several: {', '.join(sorted(names))}"
    raise OSError(f"{where} has {found}. Pass filename.")


def read_state_dict(path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors``, ``.pt``, ``.pth`` or ``.bin`` file, mapped into memory.

    Nothing in the file is executed. A state dict under ``"model"`` or ``"state_dict"`` and keys
    that begin with ``"module."`` are unwrapped.

    Parameters
    ----------
    path : path

    Returns
    -------
    state_dict : dict of str to Tensor

    Raises
    ------
    ValueError
        If the file is cut off, is no such file, or holds anything but tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                state: Any = {key: file.get_tensor(key) for key in list(file.keys())}
        else:
            # torch's format before version 1.6 cannot be mapped
            mmap = is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (FileNotFoundError, PermissionError):
        raise
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as exc:
        reason = str(exc).splitlines()[0] if str(exc) else type(exc).__name__
        raise ValueError(
            f"{path} is no readable file of weights: it is cut off, of another format, or holds "
            f"objects other than tensors, which are never loaded ({reason})."
        ) from exc
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} holds no state dict, a mapping of names to tensors.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def assign(module: nn.Module, state: dict[str, Tensor], ignore=(), source="The state dict") -> None:
    """Give a module its weights without copying them; all keys and shapes must agree.

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
    dtype = torch.get_default_dtype()
    module.load_state_dict({k: state[k].to(dtype) for k in want}, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(True)


def prior_from_state_dict(
    state: dict[str, Tensor], *, grid=None, n_head=None, source="The state dict"
) -> AnyOrderPrior:
    """A prior of the architecture that the shapes tell.

    Parameters
    ----------
    state : dict of str to Tensor
        Under the published names. Its tensors become the prior's parameters, without a copy.
    grid : tuple of int (rows, cols), default=None
        Not stored in weights; None is the published 16 x 16.
    n_head : int, default=None
        Not stored in weights; None is the published ``dim / 64``.
    source : str
        How errors call the weights.

    Returns
    -------
    prior : AnyOrderPrior

    Raises
    ------
    ValueError
        If these are no weights of such a prior.
    """
    try:
        vocab_size, dim = state["tok_embeddings.weight"].shape
        n_rows = len(state["cls_embedding.embedding_table.weight"])
        hidden = len(state["layers.0.feed_forward.w1.weight"])
        n_layer = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
    except (KeyError, ValueError, IndexError) as exc:
        raise ValueError(
            f"{source} holds no RandAR prior: {exc} is missing among keys such as "
            f"{', '.join(list(state)[:SHOWN])}."
        ) from exc
    grid = tuple(grid or PUBLISHED_GRID)
    n_head = n_head or max(1, dim // PUBLISHED_HEAD_DIM)
    with torch.device("meta"):
        prior = AnyOrderPrior(
            vocab_size, grid, n_rows - 1, dim, n_layer, n_head, multiple_of=hidden
        )
    prior.rope = rope_table(prior.grid, dim // n_head)
    assign(prior, state, source=source)
    return prior.eval()


def load_prior(
    source, filename=None, *, revision=None, token=None, grid=None, n_head=None
) -> AnyOrderPrior:
    """Load a RandAR prior; its size is read off the shapes of the weights.

    Parameters
    ----------
    source, filename, revision, token
        As in :func:`find_file`.
    grid, n_head
        As in :func:`prior_from_state_dict`.

    Returns
    -------
    prior : AnyOrderPrior
        On the CPU, in evaluation mode, its weights mapped from the file.

    Raises
    ------
    OSError
        If the file cannot be found or fetched.
    ValueError
        If it holds no such prior.

    Examples
    --------
    >>> import os, tempfile
    >>> from safetensors.torch import save_file
    >>> from skaocls import AnyOrderPrior
    >>> from skaocls.loading import load_prior
    >>> prior = AnyOrderPrior(vocab_size=16, grid=(2, 2), num_classes=3, dim=64, n_head=4)
    >>> file = os.path.join(tempfile.mkdtemp(), "prior.safetensors")
    >>> save_file(prior.state_dict(), file)
    >>> load_prior(file, grid=(2, 2), n_head=4).num_classes
    3
    """
    path = find_file(source, filename, revision=revision, token=token)
    return prior_from_state_dict(read_state_dict(path), grid=grid, n_head=n_head, source=str(path))
