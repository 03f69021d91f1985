"""Order marginalization: from log p(tokens | class, order) to the posterior over classes."""

import numpy as np
import torch

AGGREGATIONS = ("mean_log_likelihood", "mean_posterior", "logsumexp")


def joint_log_proba(
    log_likelihood: np.ndarray, class_log_prior: np.ndarray, aggregation: str
) -> np.ndarray:
    """Combine orders into one log p(image, class) per image and class.

    Parameters
    ----------
    log_likelihood : array of shape (n_images, n_orders, n_classes)
        log p(tokens | class, order), in nats; -inf where the tokens are impossible. The posterior
        of an order is the class prior if the tokens are impossible under every class.
    class_log_prior : array of shape (n_classes,)
        log p(class).
    aggregation : {"mean_log_likelihood", "mean_posterior", "logsumexp"}
        ``"mean_log_likelihood"`` averages the log-likelihoods over the orders (a geometric mean
        of the likelihoods). ``"logsumexp"`` averages the likelihoods: the order is a latent
        variable with a uniform prior. ``"mean_posterior"`` averages the posteriors of the single
        orders; the joint is this average times p(image) as ``"logsumexp"`` estimates it.

    Returns
    -------
    joint : float64 array of shape (n_images, n_classes)
        Unnormalized log posterior; its softmax is the posterior.

    References
    ----------
    Sudakov, Babenko, Baranchuk, arXiv 2603.19122, section 3.

    Examples
    --------
    Two orders and two classes: the first order favors one class, the second is undecided.

    >>> import numpy as np
    >>> from skaocls.scoring.aggregation import joint_log_proba
    >>> ll = np.log([[[0.8, 0.2], [0.5, 0.5]]])
    >>> uniform = np.log([0.5, 0.5])
    >>> for aggregation in ("mean_log_likelihood", "mean_posterior", "logsumexp"):
    ...     joint = np.exp(joint_log_proba(ll, uniform, aggregation))
    ...     print((joint / joint.sum()).round(3))
    [[0.667 0.333]]
    [[0.65 0.35]]
    [[0.65 0.35]]
    """
    per_order = torch.from_numpy(log_likelihood + class_log_prior)
    if aggregation == "mean_log_likelihood":
        return per_order.mean(1).numpy()
    log_n_orders = np.log(per_order.shape[1])
    marginal: torch.Tensor = per_order.logsumexp(1) - log_n_orders
    if aggregation == "logsumexp":
        return marginal.numpy()
    if aggregation == "mean_posterior":
        impossible = per_order.amax(2, keepdim=True) == -torch.inf
        per_order = torch.where(impossible, torch.from_numpy(class_log_prior), per_order)
        posterior: torch.Tensor = per_order.log_softmax(2).logsumexp(1) - log_n_orders
        return (posterior + marginal.logsumexp(1, keepdim=True)).numpy()
    raise ValueError(f"aggregation={aggregation!r} is unknown; pass one of {AGGREGATIONS}.")


def where_possible(joint: np.ndarray, class_log_prior: np.ndarray) -> np.ndarray:
    """Use the class prior where every class has zero likelihood.

    Parameters
    ----------
    joint : array of shape (n_images, n_classes)
        Result of :func:`joint_log_proba`.
    class_log_prior : array of shape (n_classes,)
        log p(class).

    Returns
    -------
    joint : array of shape (n_images, n_classes)
        Copy in which rows of -inf are replaced by the class prior.

    Examples
    --------
    >>> import numpy as np
    >>> from skaocls.scoring.aggregation import where_possible
    >>> joint = np.array([[-9.0, -np.inf], [-np.inf, -np.inf]])
    >>> np.exp(where_possible(joint, np.log([0.25, 0.75]))).round(4)
    array([[1.0e-04, 0.0e+00],
           [2.5e-01, 7.5e-01]])
    """
    return np.where(joint.max(1, keepdims=True) == -np.inf, class_log_prior, joint)
