"""Load priors from weights with the parameter names of the published checkpoints.

The shapes of the weights determine the sizes of the prior. The grid, the number of heads and the
number of classes are arguments, because the weights do not determine these numbers.
"""

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from skaocls.devices import own_torch_state
from skaocls.files import MAX_LISTED, assign, find_file, read_state_dict
from skaocls.priors.layers import rope_table
from skaocls.priors.shared_trunk import ClassHead, SharedTrunkPrior
from skaocls.priors.transformer import AnyOrderPrior
from skaocls.warn import warn

PUBLISHED_GRID = (16, 16)
PUBLISHED_HEAD_DIM = 64
PUBLISHED_CLASSES = 1000
CLASS_TABLE = "cls_embedding.embedding_table.weight"


@own_torch_state(grad=True)
def prior_from_state_dict(
    state: Mapping[str, Tensor],
    *,
    grid: Sequence[int] | None = None,
    n_head: int | None = None,
    num_classes: int | None = None,
    source: str = "The state dict",
) -> AnyOrderPrior:
    """Create a prior from weights, in evaluation mode.

    The shapes of the weights determine the sizes of the prior. Float32 tensors become parameters of
    the prior without a copy. If `grid` is None, the published grid of 16 x 16 is used. If `n_head`
    is None, the published value ``dim / 64`` is used. The class table has one row per class, and
    may have one more row for the null class. If this row is missing, the null class gets the mean
    of the class vectors. The null class only affects evidence without a rival, guidance,
    ``finetune="head"`` and class dropout. Error messages call the weights `source`.
    """
    try:
        vocab_size, dim = state["tok_embeddings.weight"].shape
        table = state[CLASS_TABLE]
        hidden = len(state["layers.0.feed_forward.w1.weight"])
        n_layer = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("layers."))
        if n_layer > len(state):
            raise ValueError(f"most of {n_layer} layers")
    except (KeyError, ValueError, IndexError) as exc:
        raise ValueError(
            f"{source} is not a RandAR prior: {exc} is missing from keys such as "
            f"{', '.join(list(state)[:MAX_LISTED])}."
        ) from exc
    num_classes = number_of_classes(len(table), num_classes, source)
    if len(table) == num_classes:
        state = {**state, CLASS_TABLE: torch.cat([table, table.float().mean(0, keepdim=True)])}
    rows, cols = grid or PUBLISHED_GRID
    n_head = n_head or max(1, dim // PUBLISHED_HEAD_DIM)
    try:
        with torch.device("meta"):  # allocate no memory before all shapes are checked
            prior = AnyOrderPrior(
                vocab_size, (rows, cols), num_classes, dim, n_layer, n_head, multiple_of=hidden
            )
    except RuntimeError as exc:  # sizes exceed 64 bits
        raise ValueError(f"{source} has invalid sizes: {exc}") from exc
    assign(prior, state, source=source)
    prior.rope = rope_table(prior.grid, dim // n_head)
    return prior.eval()


def number_of_classes(n_rows: int, num_classes: int | None, source: str) -> int:
    """Return the number of classes, not counting the null class, for a table of `n_rows` rows.

    If `num_classes` is None, the number of rows determines the result. A table of 1000 rows is
    assumed to have no null class. In other tables, the last row is assumed to be the null class. A
    warning is issued unless the table has 1001 rows (ImageNet's classes and the null class).
    """
    if num_classes is None:
        num_classes = n_rows if n_rows == PUBLISHED_CLASSES else n_rows - 1
        if n_rows != PUBLISHED_CLASSES + 1:
            last = "no row" if num_classes == n_rows else "the last row"
            other = n_rows - 1 if num_classes == n_rows else n_rows
            warn(
                f"{source} has a class table of {n_rows} rows. It is assumed to contain "
                f"{num_classes} classes, with {last} for the null class. If this is right, pass "
                f"num_classes={num_classes} to load_prior or PretrainedWeights. If not, pass "
                f"num_classes={other}."
            )
    elif num_classes not in (n_rows, n_rows - 1):
        raise ValueError(
            f"{source} has a class table of {n_rows} rows, so num_classes must be {n_rows - 1} "
            f"with a null class or {n_rows} without one; got {num_classes}."
        )
    return num_classes


@own_torch_state(grad=True)
def shared_trunk_from_state_dict(
    state: Mapping[str, Tensor],
    *,
    grid: Sequence[int],
    n_head: int,
    source: str = "The state dict",
) -> SharedTrunkPrior:
    """Create a prior from the state dict of a :class:`SharedTrunkPrior`."""
    body_state, head_state = (
        {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}
        for part in ("body.", "head.")
    )
    body = own_prior_from_state_dict(body_state, grid=grid, n_head=n_head, source=source)
    try:
        n_rows, width = head_state["classes.weight"].shape
        rank = head_state["tokens"].shape[2]
    except KeyError as exc:
        raise ValueError(f"{source} has no class head: {exc} is missing.") from exc
    with torch.device("meta"):
        head = ClassHead(body.dim, body.vocab_size, n_rows - 1, width // 2, rank)
    assign(head, head_state, source=source)
    prior = SharedTrunkPrior(body.vocab_size, body.grid, n_rows - 1, body=body, head=head)
    return prior.eval()


def own_prior_from_state_dict(
    state: Mapping[str, Tensor], *, grid: Sequence[int], n_head: int, source: str
) -> AnyOrderPrior:
    """Create a prior from the state dict of an :class:`AnyOrderPrior`."""
    num_classes = len(state.get(CLASS_TABLE, [0])) - 1
    return prior_from_state_dict(
        state, grid=grid, n_head=n_head, num_classes=num_classes, source=source
    )


def load_prior(
    source: str | os.PathLike[str],
    filename: str | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    grid: Sequence[int] | None = None,
    n_head: int | None = None,
    num_classes: int | None = None,
) -> AnyOrderPrior:
    """Load a RandAR prior on the CPU in float32.

    The parameters are documented in `find_file` and `prior_from_state_dict`.
    """
    path = find_file(source, filename, revision=revision, token=token)
    return prior_from_state_dict(
        read_state_dict(path), grid=grid, n_head=n_head, num_classes=num_classes, source=str(path)
    )
