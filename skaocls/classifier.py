"""The scikit-learn estimator."""

import copy
import warnings
from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import train_test_split
from sklearn.utils import (
    assert_all_finite,
    check_consistent_length,
    check_random_state,
    column_or_1d,
    gen_batches,
)
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from skaocls._validation import read_data, read_images
from skaocls.aggregation import AGGREGATIONS, joint_log_proba
from skaocls.augmentation import random_views
from skaocls.devices import resolve_device, resolve_precision
from skaocls.orders import resolve_orders
from skaocls.prior import AnyOrderPrior
from skaocls.scoring import log_likelihoods
from skaocls.tokenizers import PatchTokenizer, QuantileTokenizer
from skaocls.training import train_prior

ENCODE_AT_ONCE = 512  # images decoded and tokenized together
SCORE_AT_ONCE = 256  # images scored before their orders are aggregated
FIT_TOKENIZER_ON = 2**27  # numbers (images times pixels times channels) it may see
N_VIEWS = 16  # of each training image, the first of them the image itself


class AnyOrderARClassifier(ClassifierMixin, BaseEstimator):
    """Generative image classifier: an any-order autoregressive model, averaged over orders.

    An image becomes a grid of discrete tokens; a transformer that reads tokens in any order
    gives log p(tokens | class, order); Bayes' rule and an average over random orders turn that
    into p(class | image). One order is a poor classifier, twenty are a good one.

    `fit` trains the transformer (the *prior*) on class-conditional likelihood. Numbers in a 2-D
    array are tabular data, one token per feature, unless `image_shape` says that they are images.

    Parameters
    ----------
    prior : "auto", dict or AnyOrderPrior, default="auto"
        ``"auto"`` is a new prior whose size follows the data. A dict gives sizes of a new prior
        (`dim`, `n_layer`, `n_head`, `multiple_of`, `dropout`). A module is copied and trained on
        from its weights; it must fit the tokenizer and have as many classes as y.
    tokenizer : "auto" or transformer, default="auto"
        ``"auto"`` is a :class:`PatchTokenizer` for images and a :class:`QuantileTokenizer` for
        tabular data. Another one is cloned and fitted; see :mod:`skaocls.tokenizers`.
    n_orders : int, default=20
        Orders to average over. May be changed after `fit`: orders are nested, the first k of 20
        are those of ``n_orders=k``.
    order : {"random", "raster"} or array-like of shape (n, n_tokens), default="random"
        ``"random"`` draws `n_orders` permutations, ``"raster"`` is the one order row by row, an
        array holds permutations of raster indices (the first `n_orders` are used). `fit` trains
        for the orders that it is given: all permutations for ``"random"``. May be changed after
        `fit`, which reads the same prior in other orders.
    aggregation : {"mean_log_likelihood", "mean_posterior", "logsumexp"}, \
default="mean_log_likelihood"
        How orders are combined, see :func:`skaocls.aggregation.joint_log_proba`. May be changed
        after `fit`.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of the images if X holds flat rows; size to which image files are resized.
    augmentation : {"auto", None}, default="auto"
        ``"auto"`` trains on 16 views of each image, itself and 15 small shifts, turns and
        stretches of it; tabular data is left alone. None trains on the data as it is.
    max_iter : int, default=70
        Epochs.
    batch_size : int or "auto", default="auto"
        Images per training step. ``"auto"`` is ``min(64, n_samples)``.
    learning_rate_init : float, default=2e-3
        Peak learning rate; it warms up over 5 % of the steps, then falls to a 20th by a cosine.
    weight_decay : float, default=0.05
        Weight decay of AdamW, on matrices only.
    class_dropout : float, default=0.1
        Share of training labels replaced by the null class, so that the prior also knows
        log p(tokens).
    early_stopping : bool, default=False
        Hold out `validation_fraction` of the data, stop when its likelihood no longer rises, and
        keep the best weights.
    validation_fraction : float, default=0.1
        Share of the training data held out (stratified) if `early_stopping`.
    n_iter_no_change : int, default=10
        Epochs without a change of `tol` that end training if `early_stopping`; also the window at
        the end of training in which convergence is judged.
    tol : float, default=1e-2
        Change of the loss, in nats per token, that counts as none.
    warm_start : bool, default=False
        `fit` goes on from the last one's tokenizer, prior and orders.
    priors : array-like of shape (n_classes,), default=None
        Class probabilities. None takes the frequencies in y.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA if there is a device, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Type of the matrix products. ``"auto"`` is bfloat16 on CUDA devices that have it, else
        float32. Log-likelihoods are summed in float64 in any case.
    random_state : int, RandomState instance or None, default=None
        Governs tokenizer, initial weights, training and orders. Pass an int for the same model
        from the same data.
    verbose : int, default=0
        1 shows progress: loss, an estimate of the accuracy, time left.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    prior_ : AnyOrderPrior
        The trained prior.
    tokenizer_ : transformer
        The fitted tokenizer.
    orders_ : int64 ndarray of shape (at most n_orders, n_tokens)
        Orders that predictions average over: for each step, the raster index of the token read.
        It follows `order` and `n_orders`.
    class_count_ : ndarray of shape (n_classes,)
        Training images of each class.
    class_log_prior_ : ndarray of shape (n_classes,)
        Log probability of each class.
    image_shape_ : tuple of int or None
        Height, width and channels of the images; None for tabular data.
    loss_curve_ : list of float
        Mean training loss of each epoch, in nats per token.
    validation_scores_ : list of float or None
        Held-out log-likelihood after each epoch, in nats per token, if `early_stopping`.
    n_iter_ : int
        Epochs run.
    best_iter_ : int
        Epoch, counted from 1, whose weights were kept.
    n_features_in_ : int
        Columns of a 2-D X seen during fit, else numbers in one image.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit, when X has feature names that are all strings.

    References
    ----------
    Sudakov, Babenko, Baranchuk, "Revisiting Autoregressive Models for Generative Image
    Classification", arXiv 2603.19122.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skaocls import AnyOrderARClassifier
    >>> X, y = load_digits(n_class=2, return_X_y=True)
    >>> clf = AnyOrderARClassifier(image_shape=(8, 8), max_iter=5, n_orders=4, random_state=0)
    >>> clf.fit(X[:200], y[:200]).predict_proba(X[200:]).shape
    (160, 2)
    >>> clf.score(X[200:], y[200:]) > 0.9
    True
    """

    classes_: np.ndarray
    prior_: AnyOrderPrior

    _parameter_constraints: dict = {
        "prior": [StrOptions({"auto"}), dict, AnyOrderPrior],
        "tokenizer": [StrOptions({"auto"}), HasMethods(["fit", "transform"])],
        "n_orders": [Interval(Integral, 1, None, closed="left")],
        "order": [StrOptions({"random", "raster"}), "array-like"],
        "aggregation": [StrOptions(set(AGGREGATIONS))],
        "image_shape": [tuple, list, None],
        "augmentation": [StrOptions({"auto"}), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "class_dropout": [Interval(Real, 0, 1, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "priors": ["array-like", None],
        "device": [str, torch.device],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        prior="auto",
        tokenizer="auto",
        *,
        n_orders=20,
        order="random",
        aggregation="mean_log_likelihood",
        image_shape=None,
        augmentation="auto",
        max_iter=70,
        batch_size="auto",
        learning_rate_init=2e-3,
        weight_decay=0.05,
        class_dropout=0.1,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=1e-2,
        warm_start=False,
        priors=None,
        device="auto",
        precision="auto",
        random_state=None,
        verbose=0,
    ):
        self.prior = prior
        self.tokenizer = tokenizer
        self.n_orders = n_orders
        self.order = order
        self.aggregation = aggregation
        self.image_shape = image_shape
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.weight_decay = weight_decay
        self.class_dropout = class_dropout
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.priors = priors
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y):
        """Train tokenizer and prior.

        Parameters
        ----------
        X : array-like
            Images: arrays or tensors of shape (n_samples, height, width) or
            (n_samples, height, width, channels), flat rows with `image_shape`, paths of image
            files, PIL images. Or tabular data of shape (n_samples, n_features).
        y : array-like of shape (n_samples,)
            Class labels, of any type.

        Returns
        -------
        self : AnyOrderARClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If a parameter, X or y is not as described; the message says which and why.
        """
        self._validate_params()
        device = resolve_device(self.device)
        autocast = resolve_precision(self.precision, device)
        rng = check_random_state(self.random_state)
        again = self.warm_start and hasattr(self, "prior_")
        X = read_data(self, X, reset=not again)
        labels = self._encode_labels(X, y, again)
        n_classes = len(self.classes_)
        self.class_log_prior_ = self._resolve_priors()

        if not again:
            self.tokenizer_ = self._fit_tokenizer(X, rng)
        codes = self._views(X, rng)
        if not again:
            prior = self._new_prior(n_classes, len(labels), rng)
            self._order_seed = rng.randint(2**31 - 1)
        else:
            prior = self.prior_
        train_orders = None if self._is_random() else self._resolve_orders(prior.n_tokens)
        resolve_orders(self.order, self.n_orders, prior.n_tokens, 0)  # fails before training

        train, validation = np.arange(len(labels)), None
        if self.early_stopping:
            train, held_out = self._split(labels, rng)
            validation = codes[held_out, 0], labels[held_out]
        batch_size = 64 if self.batch_size == "auto" else self.batch_size
        history = train_prior(
            prior.to(device),
            codes[train],
            labels[train],
            max_iter=self.max_iter,
            batch_size=min(batch_size, len(train)),
            learning_rate=self.learning_rate_init,
            weight_decay=self.weight_decay,
            class_dropout=self.class_dropout,
            orders=train_orders,
            validation=validation,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            seed=rng.randint(2**31 - 1),
            autocast=autocast,
            verbose=self.verbose,
        )
        self.prior_ = prior
        self.loss_curve_ = history.loss_curve
        self.validation_scores_ = history.validation_curve if self.early_stopping else None
        self.n_iter_ = history.n_iter
        self.best_iter_ = history.best_iter
        if not history.converged:
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                "optimization hasn't converged yet. Consider increasing max_iter.",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def predict_joint_log_proba(self, X):
        """Log of the joint probability of image and class, orders marginalized.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        joint : float64 ndarray of shape (n_samples, n_classes)
            log P(x, y), in nats; columns follow `classes_`.
        """
        return np.concatenate(
            [
                joint_log_proba(ll, self.class_log_prior_, self.aggregation)
                for ll in self._log_likelihoods(X)
            ]
        )

    def predict_log_proba(self, X):
        """Log of the class probabilities.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        log_proba : float64 ndarray of shape (n_samples, n_classes)
            Columns follow `classes_`.
        """
        return torch.from_numpy(self.predict_joint_log_proba(X)).log_softmax(1).numpy()

    def predict_proba(self, X):
        """Class probabilities: the order-marginalized posterior.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        proba : float64 ndarray of shape (n_samples, n_classes)
            Rows sum to one; columns follow `classes_`.
        """
        return np.exp(self.predict_log_proba(X))

    def predict(self, X):
        """The most probable class of each image.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        y : ndarray of shape (n_samples,)
        """
        joint = self.predict_joint_log_proba(X)
        return self.classes_[joint.argmax(axis=1)]

    @property
    def orders_(self):
        """Orders that predictions average over, (at most n_orders, n_tokens)."""
        if not hasattr(self, "prior_"):
            raise NotFittedError("orders_ is known after fit: they are drawn there.")
        return self._resolve_orders(self.prior_.n_tokens)

    def _log_likelihoods(self, X):
        """Yield log p(tokens | class, order), (n, n_orders, n_classes), a few images at a time."""
        check_is_fitted(self)
        self._validate_params()
        X = read_data(self, X, reset=False)
        device = resolve_device(self.device)
        autocast = resolve_precision(self.precision, device)
        prior = self.prior_.to(device)
        orders = self.orders_
        classes = np.arange(len(self.classes_))
        for part in gen_batches(len(X), SCORE_AT_ONCE):
            codes = self._encode(X, part)
            yield log_likelihoods(prior, codes, orders, classes, autocast=autocast)

    def _resolve_orders(self, n_tokens):
        return resolve_orders(self.order, self.n_orders, n_tokens, self._order_seed)

    def _is_random(self):
        return isinstance(self.order, str) and self.order == "random"

    def _encode_labels(self, X, y, again):
        if y is None:
            raise ValueError(
                f"{type(self).__name__} requires y to be passed, but the target y is None."
            )
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        check_consistent_length(X, y)
        classes, labels = np.unique(y, return_inverse=True)
        if again and not np.isin(classes, self.classes_).all():
            raise ValueError(
                "warm_start can only be used where `self.classes_` is the same as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {classes}."
            )
        if again:
            labels = np.searchsorted(self.classes_, classes)[labels]
        else:
            self.classes_ = classes
        self.class_count_ = np.bincount(labels, minlength=len(self.classes_)).astype(np.float64)
        return labels

    def _resolve_priors(self):
        n_classes = len(self.classes_)
        if self.priors is None:
            priors = self.class_count_ / self.class_count_.sum()
        else:
            priors = np.asarray(self.priors, dtype=np.float64)
            if priors.shape != (n_classes,):
                raise ValueError(
                    f"Number of priors must match number of classes: got {priors.size}, "
                    f"expected {n_classes}."
                )
            if not np.isclose(priors.sum(), 1.0):
                raise ValueError(f"The sum of the priors should be 1, got {priors.sum()}.")
            if (priors < 0).any():
                raise ValueError("Priors must be non-negative.")
        with np.errstate(divide="ignore"):
            return np.log(priors)

    def _fit_tokenizer(self, X, rng):
        if isinstance(self.tokenizer, str):
            images = self.image_shape_ is not None
            tokenizer = PatchTokenizer() if images else QuantileTokenizer()
        else:
            tokenizer = clone(self.tokenizer)
        seed = rng.randint(2**31 - 1)
        if "random_state" in tokenizer.get_params(deep=False):
            tokenizer.set_params(random_state=seed)
        if self.image_shape_ is not None:
            n = max(1, FIT_TOKENIZER_ON // int(np.prod(self.image_shape_)))
            X = read_images(self, X, np.sort(rng.permutation(len(X))[:n]))
        return tokenizer.fit(X)

    def _views(self, X, rng):
        """Tokens of the training data, (n_samples, n_views, n_tokens)."""
        augment = self.augmentation == "auto" and self.image_shape_ is not None
        parts = []
        for part in gen_batches(len(X), ENCODE_AT_ONCE):
            if augment:
                images = read_images(self, X, part)
                views = [images, *(random_views(images, rng) for _ in range(N_VIEWS - 1))]
                parts.append(np.stack([self._tokens(v) for v in views], axis=1))
            else:
                parts.append(self._encode(X, part)[:, None])
        return np.concatenate(parts)

    def _encode(self, X, part):
        return self._tokens(X[part] if self.image_shape_ is None else read_images(self, X, part))

    def _tokens(self, data):
        return self.tokenizer_.transform(data).reshape(len(data), -1).astype(np.int32)

    def _new_prior(self, n_classes, n_samples, rng):
        vocab_size, grid = self.tokenizer_.n_codes_, tuple(self.tokenizer_.grid_)
        if isinstance(self.prior, AnyOrderPrior):
            want = {"vocab_size": vocab_size, "grid": grid, "num_classes": n_classes}
            have = {name: getattr(self.prior, name) for name in want}
            if have != want:
                raise ValueError(f"prior has {have}, but tokenizer and y need {want}.")
            return copy.deepcopy(self.prior)
        sizes = default_sizes(grid, n_samples) if self.prior == "auto" else self.prior
        seed = rng.randint(2**31 - 1)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return AnyOrderPrior(vocab_size, grid, n_classes, **sizes)

    def _split(self, labels, rng):
        stratify = labels if self.class_count_.min() > 1 else None
        return train_test_split(
            np.arange(len(labels)),
            test_size=self.validation_fraction,
            stratify=stratify,
            random_state=rng,
        )

    def __getstate__(self):
        state = super().__getstate__().copy()
        if "prior_" in state:  # what was trained on a GPU must load without one
            state["prior_"] = copy.deepcopy(state["prior_"]).cpu()
        return state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def default_sizes(grid, n_samples):
    """Sizes of a new prior that suit the data: wider and deeper with more tokens and samples."""
    if grid[0] * grid[1] < 8 or n_samples < 200:
        return {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    if n_samples < 10_000:
        return {"dim": 96, "n_layer": 3, "n_head": 4}
    return {"dim": 192, "n_layer": 4, "n_head": 6}
