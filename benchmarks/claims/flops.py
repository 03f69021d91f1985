"""Floating-point operations that it takes to classify one image.

A multiplication and an addition are two; only products of matrices count, as in
`torch.utils.flop_counter`.
"""

import torch
from sklearn.pipeline import Pipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skaocls import SharedTrunkPrior


def flops_per_image(model, image_shape):
    """Of a fitted classifier: ours, a diffusion or masked one, a network, or scikit-learn's.

    Parameters
    ----------
    model : estimator
        Of a pipeline the last step counts. Ours is taken to search exhaustively.
    image_shape : tuple of int (height, width, channels)

    Returns
    -------
    flops : int
    """
    model = model[-1] if isinstance(model, Pipeline) else model
    name = type(model).__name__
    if name == "AnyOrderARClassifier":
        return ar_flops(model.prior_, len(model.orders_), len(model.classes_))
    if name == "DiffusionClassifier":
        return model.evaluations_ * dit_flops(model.module_)
    if name == "MaskedClassifier":
        return model.evaluations_ * masked_flops(model.module_)
    if name == "NetworkClassifier":
        return counted(model.module_, blank(image_shape))
    if name == "SVC":
        # the kernel, and its sums over the support vectors of each two classes
        return 2 * (model.support_vectors_.size + model.dual_coef_.size)
    if name == "LogisticRegression":
        return 2 * model.coef_.size
    if name == "MLPClassifier":
        return 2 * sum(weights.size for weights in model.coefs_)
    raise TypeError(f"Operations of {name} are not known.")


def ar_flops(prior, n_orders, n_classes):
    """Of log p(tokens | class, order) for all classes and orders, as the scoring engine does it."""
    pair, lane = ar_parts(prior)
    if isinstance(prior, SharedTrunkPrior):
        once, head = head_parts(prior)
        pair, lane = pair + lane + once, head
    return n_orders * (pair + n_classes * lane)


def head_parts(prior):
    """Operations of a shared trunk's head, once for an order and once more for each class in it."""
    n, head = prior.n_tokens, prior.head
    rank, width = head.project.weight.shape
    once = n * 2 * head.features.weight.numel()
    # scale, shift, SiLU as five, gate; the projection; groups, and the codes of one group
    lane = n * (8 * width + 2 * width * rank + 2 * rank * (head.n_groups + head.group_size))
    return once, lane


def ar_parts(prior):
    """Operations once for an order, and once more for each class in it.

    The first layer's attention knows no class yet; in the last layer, keys and values apart, only
    the positions that predict are computed. What is masked in the attention counts.
    """
    body = prior.transformer
    n, dim, n_layer = prior.n_tokens, prior.dim, len(body.layers)
    steps = 2 * n - 1  # p1 t1 p2 ... pn
    # two for each weight: queries, keys, values, output; the feed-forward net; scores, sums
    square, ffn = 2 * dim**2, 6 * dim * body.blocks[0].feed_forward.w1.weight.shape[0]
    pair = steps * 4 * square + 4 * steps * steps * dim
    lane = 2 * steps * body.n_head * dim  # the class's share of that attention
    lane += (n if n_layer == 1 else steps) * ffn
    for layer in range(1, n_layer):
        asking = n if layer == n_layer - 1 else steps
        lane += (2 * steps + 2 * asking) * square + asking * ffn
        lane += 4 * asking * (steps + 1) * dim
    return pair, lane + n * 2 * dim * prior.vocab_size


def dit_flops(module):
    """Of one forward pass of the DiT: one image, step and class."""
    image, label = blank(module.image_shape), torch.zeros(1, dtype=torch.long)
    return counted(module, image, torch.zeros(1), label)


def masked_flops(module):
    """Of one forward pass of the masked transformer: one image, mask and class."""
    tokens, label = torch.zeros(1, module.n_tokens).long(), torch.zeros(1, dtype=torch.long)
    return counted(module, tokens, tokens.bool(), label)


def blank(image_shape):
    height, width, channels = image_shape
    return torch.zeros(1, channels, height, width)


def counted(module, *inputs):
    """Operations of one call, as torch counts them."""
    # the fast attention on CPUs is not known to the counter, nor is what inference mode composes
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(*inputs)
    return counter.get_total_flops()
