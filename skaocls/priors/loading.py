"""Weights of priors, under the names of the published checkpoints."""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.files import SHOWN, assign, find_file, read_state_dict
from skaocls.priors.shared_trunk import ClassHead, SharedTrunkPrior
from skaocls.priors.transformer import AnyOrderPrior, rope_table

PUBLISHED_GRID = (16, 16)
PUBLISHED_HEAD_DIM = 64


@own_torch_state(grad=True)
def prior_from_state_dict(
    state: Mapping[str, Tensor],
    *,
    grid: Sequence[int] | None = None,
    n_head: int | None = None,
    source: str = "The state dict",
) -> AnyOrderPrior:
    """A prior of the architecture that the shapes tell.

    Parameters
    ----------
    state : dict of str to Tensor
        Under the published names. Tensors of float32 become the prior's parameters, without a copy.
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
    rows, cols = grid or PUBLISHED_GRID
    n_head = n_head or max(1, dim // PUBLISHED_HEAD_DIM)
    with torch.device("meta"):
        prior = AnyOrderPrior(
            vocab_size, (rows, cols), n_rows - 1, dim, n_layer, n_head, multiple_of=hidden
        )
    prior.rope = rope_table(prior.grid, dim // n_head)
    assign(prior, state, source=source)
    return prior.eval()


@own_torch_state(grad=True)
def shared_trunk_from_state_dict(
    state: Mapping[str, Tensor],
    *,
    grid: Sequence[int],
    n_head: int,
    source: str = "The state dict",
) -> SharedTrunkPrior:
    """As :func:`prior_from_state_dict`, of what :class:`SharedTrunkPrior` gives as state dict."""
    of_body = {k.removeprefix("body."): v for k, v in state.items() if k.startswith("body.")}
    body = prior_from_state_dict(of_body, grid=grid, n_head=n_head, source=source)
    of_head = {k.removeprefix("head."): v for k, v in state.items() if k.startswith("head.")}
    try:
        n_rows, width = of_head["classes.weight"].shape
        rank = of_head["tokens"].shape[2]
    except KeyError as exc:
        raise ValueError(f"{source} holds no head: {exc} is missing.") from exc
    with torch.device("meta"):
        head = ClassHead(body.dim, body.vocab_size, n_rows - 1, width // 2, rank)
    assign(head, of_head, source=source)
    prior = SharedTrunkPrior(body.vocab_size, body.grid, n_rows - 1, body=body, head=head)
    return prior.eval()


def load_prior(
    source: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    grid: Sequence[int] | None = None,
    n_head: int | None = None,
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
        On the CPU, in float32 and evaluation mode; it does not depend on the file any more.

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
    >>> from skaocls.priors.loading import load_prior
    >>> prior = AnyOrderPrior(vocab_size=16, grid=(2, 2), num_classes=3, dim=64, n_head=4)
    >>> file = os.path.join(tempfile.mkdtemp(), "prior.safetensors")
    >>> save_file(prior.state_dict(), file)
    >>> load_prior(file, grid=(2, 2), n_head=4).num_classes
    3
    """
    path = find_file(source, filename, revision=revision, token=token)
    return prior_from_state_dict(read_state_dict(path), grid=grid, n_head=n_head, source=str(path))
