"""The estimator's inventions: samples and filled-in images."""

# what a mixin takes from its class:
# mypy: disable-error-code="attr-defined,misc"

from numbers import Integral

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted

from skaocls._encoding import encode, patch_shape
from skaocls._validation import read_data, read_images
from skaocls.generation import HOW, generate, known_first, known_log_likelihoods, touched
from skaocls.orders import DRAWN
from skaocls.scoring import scoring_dtype

N_SAMPLES = {"n_samples": [Interval(Integral, 1, None, closed="left")]}


class GenerationMixin:
    """Images that a fitted :class:`skaocls.AnyOrderARClassifier` draws."""

    def sample(
        self,
        n_samples=1,
        y=None,
        *,
        n_steps=None,
        temperature=1.0,
        top_k=None,
        top_p=None,
        guidance=1.0,
        random_state=None,
    ):
        """Draw images.

        Parameters
        ----------
        n_samples : int, default=1
            Number of images.
        y : label or array-like of shape (n_samples,), default=None
            Class of all images or of each. None draws classes by their probabilities, as in
            `class_log_prior_`.
        n_steps : int, default=None
            Steps in which an image's tokens are drawn. None draws one token at a time, exactly
            from the model; fewer steps are faster, and tokens of one step do not see each other.
        temperature : float, default=1.0
            Logits are divided by it: below 1, images are likelier and vary less.
        top_k : int, default=None
            Draw each token among this many most likely ones.
        top_p : float, default=None
            Draw each token among the fewest most likely ones whose probabilities reach this sum.
        guidance : float, default=1.0
            Above 1, images are more typical of their class; see
            :func:`skaocls.generation.generate`.
        random_state : int, RandomState instance or None, default=None
            Governs classes, orders and tokens. Pass an int for the same images each time.

        Returns
        -------
        images : float array of shape (n_samples, height, width[, channels])
            What the tokenizer's `inverse_transform` gives; for tabular data
            (n_samples, n_features).

        Raises
        ------
        ValueError
            If `y` has classes that `fit` has not seen or is not `n_samples` long, or if another
            parameter is out of its range.

        References
        ----------
        Pang et al., "RandAR", arXiv 2412.01827, section 3.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from skaocls import AnyOrderARClassifier
        >>> data = load_digits(n_class=2)
        >>> clf = AnyOrderARClassifier(max_iter=5, random_state=0)
        >>> clf = clf.fit(data.images[:200], data.target[:200])
        >>> clf.sample(3, y=1, random_state=0).shape
        (3, 8, 8)
        """
        check_is_fitted(self)
        self._validate_params()
        how = {
            "n_steps": n_steps,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "guidance": guidance,
        }
        validate_parameter_constraints(HOW | N_SAMPLES, {"n_samples": n_samples, **how}, "sample")
        rng = check_random_state(random_state)
        if y is None:
            p = np.exp(self.class_log_prior_)
            columns = rng.choice(len(p), n_samples, p=p / p.sum())
        else:
            columns = self._columns_for(y, n_samples)
        orders = self._orders_for(n_samples, rng)
        return self._images(self._generate(columns, orders, None, np.zeros_like(columns), how, rng))

    def inpaint(
        self,
        X,
        mask,
        y=None,
        *,
        n_steps=None,
        temperature=1.0,
        top_k=None,
        top_p=None,
        guidance=1.0,
        random_state=None,
    ):
        """Fill in missing parts of images.

        A token is drawn anew if it has a masked pixel, and known otherwise. All known tokens are
        read before the first is drawn.

        Parameters
        ----------
        X : array-like
            As in `fit`. Masked pixels may hold any valid number (not NaN): they are not looked at
            by tokenizers that read patch by patch, such as :class:`PatchTokenizer`. Convolutional
            ones see a margin around each patch; set masked pixels to some gray for them.
        mask : bool array-like of shape (height, width) or (n_samples, height, width)
            True where pixels are unknown. For tabular data of shape (n_features,) or
            (n_samples, n_features).
        y : label or array-like of shape (n_samples,), default=None
            Class of all images or of each. None takes for each image the most probable class given
            its known tokens.
        n_steps, temperature, top_k, top_p, guidance :
            As in :meth:`sample`.
        random_state : int, RandomState instance or None, default=None
            Governs orders and tokens.

        Returns
        -------
        images : float array of shape (n_samples, height, width[, channels])
            Where `mask` is False the pixels of X (8-bit ones divided by 255), elsewhere what the
            tokenizer's `inverse_transform` gives. For tabular data (n_samples, n_features).

        Raises
        ------
        ValueError
            If `mask` has another shape or is not bool, if `y` has classes that `fit` has not seen
            or another length than X, or if another parameter is out of its range.

        References
        ----------
        Pang et al., "RandAR", arXiv 2412.01827 (zero-shot inpainting).
        """
        check_is_fitted(self)
        self._validate_params()
        how = {
            "n_steps": n_steps,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "guidance": guidance,
        }
        validate_parameter_constraints(HOW, how, "inpaint")
        X = read_data(self, X, reset=False)
        tabular = self.image_shape_ is None
        shape = (1, X.shape[1]) if tabular else self.image_shape_[:2]
        mask = check_mask(mask, len(X), shape[tabular:])
        rng = check_random_state(random_state)
        grid = self.prior_.grid
        patch = patch_shape(self.tokenizer_, shape, grid)
        unknown = touched(mask.reshape(len(X), *shape), patch, grid)
        n_known = (~unknown).sum(1)
        codes = encode(self, X, slice(0, len(X)))
        if y is None:
            columns = self._most_probable(codes, unknown, n_known)
        else:
            columns = self._columns_for(y, len(X))
        orders = known_first(self._orders_for(len(X), rng), unknown)
        images = self._images(self._generate(columns, orders, codes, n_known, how, rng))
        if tabular:
            return np.where(mask, images, X)
        pixels = read_images(self, X)
        return np.where(mask[..., None], images.reshape(pixels.shape), pixels).reshape(images.shape)

    def _generate(self, columns, orders, codes, n_known, how, rng):
        out = np.empty_like(orders)
        for prior, where in self._by_prior(columns):
            known = None if codes is None else codes[where]
            labels = self.class_rows_[columns[where]]
            seed = rng.randint(2**31 - 1)
            out[where] = generate(
                prior, labels, orders[where], known, n_known[where], **how, seed=seed
            )
        return out

    def _images(self, codes):
        return self.tokenizer_.inverse_transform(codes.reshape(-1, *self.prior_.grid))

    def _most_probable(self, codes, unknown, n_known):
        """Of each image, the class (a column) most probable given the known tokens alone."""
        shape = (len(codes), *self.orders_.shape)
        orders = known_first(
            np.broadcast_to(self.orders_, shape), np.broadcast_to(unknown[:, None], shape)
        )
        ll = np.empty((*shape[:2], len(self.classes_)))
        for prior, where in self._by_prior(np.arange(len(self.classes_))):
            dtype = scoring_dtype(prior, self.precision)
            rows = self.class_rows_[where]
            ll[:, :, where] = known_log_likelihoods(
                prior, codes, orders, rows, n_known, dtype=dtype
            )
        return self._joint_log_proba(ll).argmax(1)

    def _orders_for(self, n, rng):
        """An order for each image, of those that the prior was trained for."""
        if isinstance(self.order, str) and self.order in DRAWN:
            return np.stack([rng.permutation(self.prior_.n_tokens) for _ in range(n)])
        return self.orders_[rng.randint(len(self.orders_), size=n)]

    def _columns_for(self, y, n):
        """Columns of n labels, or of one label for all."""
        columns = self._columns(np.ravel(y) if np.ndim(y) == 0 else y, "y")
        if np.ndim(y) and len(columns) != n:
            raise ValueError(
                f"y has {len(columns)} labels, but {n} are expected: one for each image, or a "
                "single one for all."
            )
        return np.broadcast_to(columns, n)


def check_mask(mask, n, shape):
    """The mask as a bool array of shape (n, *shape), or a ValueError that says what is wrong."""
    mask = np.asarray(mask)
    if mask.dtype != bool:
        raise ValueError(f"mask must be boolean, True where X is unknown; got dtype {mask.dtype}.")
    if mask.shape not in (shape, (n, *shape)):
        raise ValueError(f"mask has shape {mask.shape}, but {shape} or {(n, *shape)} is expected.")
    return np.broadcast_to(mask, (n, *shape))
