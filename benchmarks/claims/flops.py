"""Floating-point operations for classifying one image.

A multiplication and an addition count as two. Only matrix products count, as in
`torch.utils.flop_counter`.
"""

import torch
from sklearn.pipeline import Pipeline
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from skaocls import SharedTrunkPrior


def flops_per_image(model, image_shape):
    """Count the operations of a fitted classifier for one image.

    Parameters
    ----------
    model : estimator
        Any contestant. Only the last step of a pipeline counts. Our classifier is counted with
        exhaustive search.
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
        # the kernel, and its sums over the support vectors for each pair of classes
        return 2 * (model.support_vectors_.size + model.dual_coef_.size)
    if name == "LogisticRegression":
        return 2 * model.coef_.size
    if name == "MLPClassifier":
        return 2 * sum(weights.size for weights in model.coefs_)
    raise TypeError(f"The operations of {name} are unknown.")


def ar_flops(prior, n_orders, n_classes):
    """Count the engine's operations for log p(tokens | class, order), all classes and orders."""
    per_order, per_class = ar_parts(prior)
    if isinstance(prior, SharedTrunkPrior):
        head_per_order, head_per_class = head_parts(prior)
        per_order, per_class = per_order + per_class + head_per_order, head_per_class
    return n_orders * (per_order + n_classes * per_class)


def head_parts(prior):
    """Count the operations of a shared trunk's head, per order and per class in an order."""
    n, head = prior.n_tokens, prior.head
    rank, width = head.project.weight.shape
    per_order = n * 2 * head.features.weight.numel()
    # scale, shift, SiLU (five), gate; the projection; groups, and the codes of one group
    per_class = n * (8 * width + 2 * width * rank + 2 * rank * (head.n_groups + head.group_size))
    return per_order, per_class


def ar_parts(prior):
    """Count the operations per order, and per class in an order.

    The first layer's attention does not depend on the class. The last layer computes keys and
    values everywhere, and the rest only at positions that predict. Masked parts of the attention
    count.
    """
    body = prior.transformer
    n, dim, n_layer = prior.n_tokens, prior.dim, len(body.layers)
    steps = 2 * n - 1  # p1 t1 p2 ... pn
    # queries, keys, values and output; the feed-forward network; attention scores and sums
    square, ffn = 2 * dim**2, 6 * dim * body.blocks[0].feed_forward.w1.weight.shape[0]
    per_order = steps * 4 * square + 4 * steps * (steps + 1) * dim
    per_class = 2 * steps * body.n_head * dim  # attention of the first layer to the class token
    per_class += (n if n_layer == 1 else steps) * ffn
    for layer in range(1, n_layer):
        queries = n if layer == n_layer - 1 else steps
        per_class += (2 * steps + 2 * queries) * square + queries * ffn
        per_class += 4 * queries * (steps + 1) * dim
    return per_order, per_class + n * 2 * dim * prior.vocab_size


def dit_flops(module):
    """Count the operations of one forward pass of the DiT: one image, step and class."""
    image, label = blank(module.image_shape), torch.zeros(1, dtype=torch.long)
    return counted(module, image, torch.zeros(1), label)


def masked_flops(module):
    """Count the operations of one pass of the masked transformer: one image, mask and class."""
    tokens, label = torch.zeros(1, module.n_tokens).long(), torch.zeros(1, dtype=torch.long)
    return counted(module, tokens, tokens.bool(), label)


def blank(image_shape):
    height, width, channels = image_shape
    return torch.zeros(1, channels, height, width)


def counted(module, *inputs):
    """Count the operations of one call with torch's counter."""
    # the counter supports neither the fast attention on CPUs nor inference mode
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        module(*inputs)
    return counter.get_total_flops()
