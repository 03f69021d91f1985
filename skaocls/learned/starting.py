"""What training starts from: the prior and the tokenizer that parameters name."""

import copy
from typing import Any

from sklearn.frozen import FrozenEstimator

from skaocls.devices import own_torch_state
from skaocls.learned.learning import ARCHITECTURES
from skaocls.learned.published import is_published, load_published, published_tokenizer
from skaocls.learned.saving import load, read_config
from skaocls.priors.transformer import Prior


@own_torch_state(grad=True)
def starting_point(
    prior: Any, tokenizer: Any, image_shape: Any, filename: str | None, revision: str | None
) -> tuple[Prior | None, Any, Any]:
    """Find what the classifier's parameters of these names stand for.

    Returns
    -------
    given : Prior or None
        A prior to fine-tune, which may be changed; None is a new one.
    tokenizer : "auto" or transformer
        Frozen if it belongs to the prior.
    image_shape : tuple of int or None
        To which files are resized.
    """
    if isinstance(prior, Prior):
        return copy.deepcopy(prior), tokenizer, image_shape
    if isinstance(prior, dict) or (isinstance(prior, str) and prior in ("auto", *ARCHITECTURES)):
        return None, tokenizer, image_shape
    known = is_published(prior) or filename is not None
    config = None if known else read_config(prior, revision=revision)
    if config is not None:
        model = load(config, prior, revision=revision)
        given, own = model.prior, FrozenEstimator(model.tokenizer)
        own_shape = model.reader.declared_shape
    else:
        given = load_published(prior, filename, revision=revision)
        own = published_tokenizer(given) if isinstance(tokenizer, str) else None
        own_shape = getattr(own or tokenizer, "image_shape", None)
    return given, own if isinstance(tokenizer, str) else tokenizer, image_shape or own_shape
