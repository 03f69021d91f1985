"""Objects that group related parameters of the classifier."""

import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Literal

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions

FINETUNE_MODES = ("full", "lora", "class_embedding", "head")


class FineTuning(BaseEstimator):
    """Options for training a prior that already has weights.

    Pass an instance as the `finetune` parameter of :class:`~skaocls.AnyOrderARClassifier`. In grid
    searches, the parameters of the instance have names such as ``finetune__lora_rank``.

    Parameters
    ----------
    mode : {"full", "lora", "class_embedding", "head"}, default="full"
        Which weights to train. ``"full"`` trains all weights. ``"lora"`` trains the class
        embeddings and low-rank updates of the attention and feed-forward matrices. When training
        ends, `fit` adds the updates to these matrices. ``"class_embedding"`` trains only the class
        embeddings. ``"head"`` freezes the transformer, and trains a new class head that takes the
        output of the transformer as input, see :class:`~skaocls.SharedTrunkPrior`.
    lora_rank : int, default=8
        Rank of the low-rank updates. Only ``mode="lora"`` uses this parameter.
    lora_alpha : float, default=16.0
        Scale of the low-rank updates: each update is multiplied by ``lora_alpha / lora_rank``. Only
        ``mode="lora"`` uses this parameter.
    dropout : float or "auto", default="auto"
        Dropout rate for token embeddings and residual branches during fine-tuning. ``"auto"``
        selects 0.1 (the published rate) for the modes ``"full"`` and ``"lora"``, and 0 for the
        other modes.
    new_classes : {"nearest", "null"}, default="nearest"
        Initial embedding of a new class. ``"nearest"`` scores a few images of the new class under
        all old classes, and averages the embeddings of the three most likely old classes.
        ``"null"`` copies the embedding of the null class.

    References
    ----------
    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685.

    Examples
    --------
    >>> from skaocls import AnyOrderARClassifier, FineTuning
    >>> clf = AnyOrderARClassifier("randar-l", finetune=FineTuning("lora"))
    >>> clf.set_params(finetune__lora_rank=4).finetune.lora_rank
    4
    """

    _parameter_constraints = {
        "mode": [StrOptions(set(FINETUNE_MODES))],
        "lora_rank": [Interval(Integral, 1, None, closed="left")],
        "lora_alpha": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left"), StrOptions({"auto"})],
        "new_classes": [StrOptions({"nearest", "null"})],
    }

    def __init__(
        self,
        mode: Literal["full", "lora", "class_embedding", "head"] = "full",
        *,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        dropout: float | Literal["auto"] = "auto",
        new_classes: Literal["nearest", "null"] = "nearest",
    ):
        self.mode = mode
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.dropout = dropout
        self.new_classes = new_classes


class PretrainedWeights(BaseEstimator):
    """Location of pretrained weights.

    Pass an instance as the `prior` parameter of :class:`~skaocls.AnyOrderARClassifier`, or to
    :meth:`~skaocls.AnyOrderARClassifier.from_pretrained`. If you only need `source`, you can pass
    the source itself: ``prior="randar-l"``.

    Parameters
    ----------
    source : str or path
        A Hugging Face repository, a folder, a file or a short name. The short names are
        ``"randar-l"``, ``"randar-xl"``, ``"randar-l-maskgit"`` and ``"randar-l-classifier"``.
        ``"randar-l-classifier"`` is the model of the paper, which was trained on random crops.
    filename : str, default=None
        Name of the weights file in the repository or folder. If None, the repository or folder must
        contain a single weights file.
    revision : str, default=None
        Branch, tag or commit of the repository. If None, the loader uses the default branch.
    grid : tuple of int (rows, cols), default=None
        Token grid of the prior. If None, the tokenizer or `image_shape` determines the grid. If
        neither of them determines a grid, the grid is 16 x 16.
    n_head : int, default=None
        Number of attention heads. If None, the prior has ``dim / 64`` heads.
    num_classes : int, default=None
        Number of classes, not counting the null class. If None, the loader guesses whether the last
        row of the class table is the null class, and warns if the guess is uncertain.

    Examples
    --------
    >>> from skaocls import AnyOrderARClassifier, PretrainedWeights
    >>> weights = PretrainedWeights("iasudakov/ar_classifier", revision="main")
    >>> AnyOrderARClassifier(weights).prior.revision
    'main'
    """

    _parameter_constraints = {
        "source": [str, os.PathLike],
        "filename": [str, None],
        "revision": [str, None],
        "grid": [tuple, list, None],
        "n_head": [Interval(Integral, 1, None, closed="left"), None],
        "num_classes": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(
        self,
        source: str | os.PathLike[str],
        filename: str | None = None,
        revision: str | None = None,
        *,
        grid: Sequence[int] | None = None,
        n_head: int | None = None,
        num_classes: int | None = None,
    ):
        self.source = source
        self.filename = filename
        self.revision = revision
        self.grid = grid
        self.n_head = n_head
        self.num_classes = num_classes


def validated_finetuning(finetune: str | FineTuning) -> FineTuning:
    """Return the options as a valid FineTuning. If `finetune` is a string, it is the mode."""
    options = FineTuning(finetune) if isinstance(finetune, str) else finetune  # type: ignore[arg-type]
    options._validate_params()
    return options


def validated_weights(source: str | os.PathLike[str] | PretrainedWeights) -> PretrainedWeights:
    """Return the source as valid PretrainedWeights, after converting a string or path."""
    weights = source if isinstance(source, PretrainedWeights) else PretrainedWeights(source)
    weights._validate_params()
    return weights
