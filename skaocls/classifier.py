"""The scikit-learn estimator `AnyOrderARClassifier`."""

import os
from dataclasses import fields, replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted

from skaocls.attribute_alias import read_from
from skaocls.devices import resolve_device
from skaocls.distributed import broadcast, collective_call, is_main, run_on_main
from skaocls.fitted import generation, prediction, saving
from skaocls.fitted.class_statistics import log_density
from skaocls.fitted.fit import extend_model, fit_model
from skaocls.fitted.initial_prior import is_new, new_prior_sizes, resolve_prior
from skaocls.fitted.labels import class_log_prior, known_classes, read_labels
from skaocls.fitted.place_evidence import deciding_places, describe
from skaocls.fitted.pretrained import (
    load_pretrained_model,
    only_classes,
    reading_tokens,
    with_image_shape,
)
from skaocls.fitted.result_cache import open_cache
from skaocls.fitted.tokenization import check_crop
from skaocls.images.input_types import as_array
from skaocls.images.reader import learn_reader, learn_tokens
from skaocls.parameter_objects import (
    FINETUNE_MODES,
    FineTuning,
    PretrainedWeights,
    validated_finetuning,
    validated_weights,
)
from skaocls.priors.transformer import Prior
from skaocls.progress import say
from skaocls.scoring.aggregation import (
    AGGREGATIONS,
    BOUNDED,
    evidence_bound,
    joint_log_proba,
    where_possible,
)
from skaocls.scoring.bounded import bounded_evidence, score_bounded_until_decided
from skaocls.scoring.calibration import fit_temperature
from skaocls.scoring.early_stopping import score_until_decided
from skaocls.scoring.orders import DRAWN
from skaocls.scoring.token_sampling import SAMPLING_CONSTRAINTS
from skaocls.tokenizers import PrecomputedTokenizer
from skaocls.training.config import TrainingConfig
from skaocls.warn import hold_errors, result_first, warn

SMALLEST_TEMPERATURE = 1e-30  # log-likelihoods divided by less than this could overflow
STOPPING_ERROR = 1e-3  # `search` that "auto" selects (benchmarks/speed/early_stopping.py)
N_SAMPLES = {"n_samples": [Interval(Integral, 1, None, closed="left"), None]}
NESTED_EXAMPLES = {  # examples of values that have parameters of their own, for error messages
    "tokenizer": "tokenizer=PatchTokenizer() for images or QuantileTokenizer() for tables",
    "prior": 'the sizes of a new prior as a dict, such as prior={"dim": 64}',
    "finetune": "finetune=FineTuning()",
}
# Fitted attributes that are saved in addition to the fitted model
TRAINING_HISTORY = (
    "loss_curve_",
    "validation_scores_",
    "n_iter_",
    "best_iter_",
    "choices_",
    "skipped_images_",
    "_fitted_temperature",
)


class AnyOrderARClassifier(TransformerMixin, ClassifierMixin, BaseEstimator):
    """Generative image classifier: an autoregressive model, averaged over token orders.

    A tokenizer turns an image into a grid of discrete tokens. A transformer, the *prior*, models
    log p(tokens | class, order) for any order of the tokens. Predictions average over `n_orders`
    orders and apply Bayes' rule to obtain p(class | image).

    `fit` trains the prior by maximum likelihood. If X is a 2-D array and `image_shape` is None, X
    is a table, and each feature becomes one token.

    Parameters by topic:

    - images and model: `prior`, `tokenizer`, `image_shape`, `decoding`, `on_bad_image`;
    - orders and predictions (you can change these after `fit`): `n_orders`, `order`, `crop`,
      `aggregation`, `temperature`, `class_prior`, `search`;
    - training: `augmentation`, `max_iter`, `batch_size`, `learning_rate_init`, `posterior_weight`,
      `class_weight`, `early_stopping`, `validation_fraction`, `n_iter_no_change`, `tol`;
    - fine-tuning: `finetune`;
    - resources: `memory`, `checkpoint_dir`, `n_jobs`, `device`, `precision`, `random_state`,
      `verbose`.

    Parameters
    ----------
    prior : "auto", "shared_trunk", "randar", dict, module, str, path or PretrainedWeights, \
default="auto"
        Network that models log p(tokens | class, order). ``"auto"`` and ``"shared_trunk"`` create
        a :class:`SharedTrunkPrior`, and ``"randar"`` creates an :class:`AnyOrderPrior`. A dict
        such as ``{"dim": 64, "n_layer": 2}`` creates a new prior with these sizes. To fine-tune
        pretrained weights, pass a :class:`PretrainedWeights` or only its `source`. To fine-tune a
        prior module, pass the module here, and its tokenizer as a ``FrozenEstimator``.
    tokenizer : "auto", "precomputed" or transformer, default="auto"
        Estimator that turns images into tokens. ``"auto"`` selects a :class:`PatchTokenizer` for
        images and a :class:`QuantileTokenizer` for tables. For pretrained weights, it selects the
        tokenizer that these weights require. With ``"precomputed"``, X must contain tokens instead
        of images, see :class:`PrecomputedTokenizer`.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of the images. The classifier reshapes flat rows in X and resizes image files to this
        shape. If None, the classifier uses the shape of the images in X.
    decoding : {"as_seen", "plain"}, default="as_seen"
        How image files and PIL images are decoded. ``"as_seen"`` applies the EXIF rotation and
        blends transparent pixels with white. ``"plain"`` ignores rotation and transparency. If you
        change `decoding`, the new value takes effect at the next `fit`.
    on_bad_image : {"raise", "skip"}, default="raise"
        What `fit` and `partial_fit` do if an image is unreadable. ``"raise"`` raises an error, and
        ``"skip"`` skips the image with a warning. Predictions always raise an error.
    n_orders : int, default=20
        Number of orders to average over. With ``n_orders=5``, predictions use the first five of the
        20 orders that ``n_orders=20`` would use.
    order : {"random", "antithetic", "raster"} or array-like of shape (n, n_tokens), \
default="random"
        ``"random"`` draws `n_orders` random permutations of the tokens. ``"antithetic"`` draws
        ``n_orders / 2`` permutations, and uses each of them forwards and backwards. ``"raster"``
        uses a single order: row by row. In an array, each row is one order of the token indices.
        The token in row i and column j of the grid has index ``i * n_cols + j``.
    crop : {"auto", "center", "views", "random"}, default="auto"
        Which part of the image is used for each order. ``"center"`` uses the same image for all
        orders. ``"views"`` uses the unchanged image for the first order. For each later order,
        ``"views"`` uses a new copy that is slightly shifted, rotated and stretched. ``"random"``
        uses a new random crop of the image for each order, as in the paper. ``"auto"`` selects
        ``"views"`` if training used views and the tokenizer is fast, and ``"center"`` otherwise.
    aggregation : {"mean_log_likelihood", "mean_posterior", "logsumexp", "bounded"} or float, \
default="mean_log_likelihood"
        Quantity that is averaged over the orders. ``"mean_log_likelihood"`` averages
        log-likelihoods. ``"mean_posterior"`` averages class probabilities. ``"logsumexp"`` averages
        likelihoods, not their logarithms. ``"bounded"`` limits how much each place of the image can
        say about the class, see :mod:`skaocls.scoring.bounded`. A watermark or another small mark
        then cannot outweigh the rest of the image. A float is the bound in nats. ``"bounded"`` is
        equivalent to ``sqrt(8 / n_tokens)``.
    temperature : float or "auto", default=1.0
        Number that divides the log-likelihoods. Values above 1 make the predicted probabilities
        less extreme. With ``"auto"``, `fit` holds out `validation_fraction` of the data, and
        selects the temperature with the smallest log-loss on these held-out data.
    class_prior : array-like of shape (n_classes,), default=None
        Prior probabilities of the classes. If None, the classifier uses the class frequencies in y,
        weighted by `sample_weight`.
    search : {"auto", "exhaustive"} or float, default="auto"
        ``"exhaustive"`` scores every class in every order. With a float in (0, 0.5), predictions
        stop scoring an image as soon as the leading class is unlikely to change. The float is the
        allowed probability that this class differs from the result of ``"exhaustive"``. ``"auto"``
        is equivalent to 0.001. After an early stop, the probabilities are estimates, and may rank
        the classes behind the leading class differently. Predictions only stop early if
        ``memory=None``, and if `aggregation` is ``"mean_log_likelihood"``, ``"bounded"`` or a
        float. Staged predictions, `transform` and `score_samples` never stop early.
    augmentation : int, "auto" or None, default="auto"
        Number of training views per image. The views are the image itself, and copies of it with
        small random shifts, rotations and stretches. ``"auto"`` selects 16 views, or 4 views with
        the published tokenizers. If None, training uses only the original images. Tables are never
        augmented.
    max_iter : int or "auto", default="auto"
        Number of epochs. ``"auto"`` selects a number that depends on the size of the data and the
        size of the prior: 10 to 120 epochs for images, and 10 to 30 epochs for tables.
    batch_size : int or "auto", default="auto"
        Number of images or table rows per training step. ``"auto"`` selects a value from 16 to 64.
    learning_rate_init : float or "auto", default="auto"
        Learning rate at the peak of the schedule. The rate rises to the peak during the first 5 %
        of the steps, and then falls along a cosine curve to 1/20 of the peak. ``"auto"`` selects
        ``0.4 / dim`` for a new prior, or three times as much if Muon trains it on images (in fits
        of fewer than 50 epochs). For fine-tuning, ``"auto"`` selects ``0.4 / dim`` times a
        factor for each mode: 0.1 for ``"full"``, 0.5 for ``"lora"``, 1 for ``"head"`` and 5 for
        ``"class_embedding"``.
    posterior_weight : float or "auto", default="auto"
        Weight of the loss term -log p(class | tokens, order), which is added to the main loss
        -log p(tokens | class, order). With a weight of 0, training uses the likelihood alone, as in
        the paper. ``"auto"`` selects a weight of at most 5 for a :class:`SharedTrunkPrior`, and 0
        for an :class:`AnyOrderPrior`.
    class_weight : dict, "balanced" or None, default=None
        Weights of the classes. `fit` multiplies each sample weight by the weight of the class.
        ``"balanced"`` uses the weights ``n_samples / (n_classes * np.bincount(y))``.
    early_stopping : bool, default=False
        Whether training stops when the log-likelihood of held-out data no longer improves. If True,
        `fit` holds out `validation_fraction` of the data, and keeps the weights of the best epoch.
    validation_fraction : float, default=0.1
        Fraction of the training data to hold out. `fit` only holds out data if
        ``early_stopping=True`` or ``temperature="auto"``.
    n_iter_no_change : int, default=10
        If `early_stopping` is True, training ends after this number of consecutive epochs without
        an improvement of at least `tol`.
    tol : float, default=2e-2
        Smallest change of the log-likelihood that counts as an improvement, in nats per token. If
        `early_stopping` is False, `fit` uses `tol` only to decide whether training has converged.
    finetune : {"full", "lora", "class_embedding", "head"} or FineTuning, default="full"
        How to train a prior that already has weights, see :class:`FineTuning`. A string selects the
        `mode`. If the prior is new, `fit` always trains all of its weights.
    memory : str, path or joblib.Memory, default=None
        Folder in which to cache up to 10 GiB of fitted models and log-likelihoods. With a cache, a
        grid search over `n_orders`, `aggregation`, `temperature` or `class_prior` trains only once
        per fold. The cache contains pickles, which can run code: use only folders that you trust.
    checkpoint_dir : str or path, default=None
        Folder for training checkpoints. To resume an interrupted `fit` from the last checkpoint,
        call `fit` again with the same data and parameters. With ``verbose=1``, `fit` then shows the
        epoch from which it resumes. At the end of training, `fit` removes the checkpoints.
    n_jobs : int, default=None
        Number of joblib workers for predictions and `explain`. None means one worker, unless
        ``joblib.parallel_config`` sets another number. -1 means one worker per processor. Results
        do not depend on the number of workers.
    device : str or torch.device, default="auto"
        Device that runs the networks. ``"auto"`` selects CUDA if it is available, and the CPU
        otherwise.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Data type of matrix products. ``"auto"`` selects bfloat16 if the device supports bfloat16
        and predictions do not become less accurate. Otherwise ``"auto"`` selects float32.
    random_state : int, RandomState instance or None, default=None
        Seed of the tokenizer, the initial weights, the training and the orders.
    verbose : int, default=0
        With ``verbose=1``, the classifier shows progress. With ``verbose=2``, the classifier also
        shows the values that it chose for parameters set to ``"auto"``.

    Attributes
    ----------
    model_ : FittedModel
        Everything that `fit` has learned, as one object. The object includes the priors that
        `partial_fit` has added.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    prior_ : SharedTrunkPrior or AnyOrderPrior
        The trained prior.
    tokenizer_ : transformer
        The fitted tokenizer.
    orders_ : int64 ndarray of shape (at most n_orders, n_tokens)
        Orders that predictions average over. Each row is one order of the token indices, as in the
        parameter `order`.
    class_count_ : ndarray of shape (n_classes,)
        Sum of the sample weights of each class. If all weights are 1, this sum is the number of
        training images.
    class_prior_, class_log_prior_ : ndarray of shape (n_classes,)
        Prior probability of each class, and the natural logarithm of this probability.
    class_names_, wordnet_ids_ : ndarray of shape (n_classes,)
        Names and WordNet IDs of the classes. These attributes only exist for ImageNet classes.
    image_shape_ : tuple of int or None
        Height, width and number of channels of the images, or None for tables and tokens.
    skipped_images_ : list of int
        Indices of the unreadable images in X that the last `fit` or `partial_fit` skipped.
    loss_curve_ : list of float
        Mean training loss of each epoch, in nats per token.
    temperature_ : float
        Temperature that predictions use.
    validation_scores_ : list of float or None
        Log-likelihood of the held-out data after each epoch, in nats per token. If `early_stopping`
        is False, this attribute is None.
    n_iter_ : int
        Number of training epochs.
    best_iter_ : int
        Epoch whose weights were kept, counted from 1.
    choices_ : dict of str to object
        Values that `fit` chose for parameters set to ``"auto"``: `max_iter`, `batch_size`,
        `learning_rate_init`, `prior` (its sizes) and `tokenizer` (its parameters).
    place_evidence_ : ndarray of shape (n_classes, n_rows, n_cols)
        Mean evidence of each token of the grid for each class in training images, in nats: the
        log-likelihood of the token under the class, minus the mean under up to nine other classes.
        If one place decides a class, it may be a watermark or another mark. With ``verbose=1``,
        `fit` reports such places. Classes without images in the last `fit` or `partial_fit` are
        NaN. `save_pretrained` does not save this attribute.
    n_features_in_ : int
        Number of columns if X is 2-D, and number of values in one image otherwise.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features seen during fit. Only defined if X has feature names that are all strings.

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

    classes_ = read_from("model_.classes")
    prior_ = read_from("model_.prior")
    tokenizer_ = read_from("model_.tokenizer")
    class_count_ = read_from("model_.class_count")
    class_names_ = read_from("model_.class_names", optional=True)
    wordnet_ids_ = read_from("model_.wordnet_ids", optional=True)
    image_shape_ = read_from("model_.reader.image_shape")
    n_features_in_ = read_from("model_.reader.n_features")
    feature_names_in_ = read_from("model_.reader.feature_names", optional=True)

    _parameter_constraints: dict[str, Any] = {
        "prior": [str, os.PathLike, dict, Prior, PretrainedWeights],
        "tokenizer": [StrOptions({"auto", "precomputed"}), HasMethods(["fit", "transform"])],
        "image_shape": [tuple, list, None],
        "decoding": [StrOptions({"as_seen", "plain"})],
        "on_bad_image": [StrOptions({"raise", "skip"})],
        "n_orders": [Interval(Integral, 1, None, closed="left")],
        "order": [StrOptions({*DRAWN, "raster"}), "array-like"],
        "crop": [StrOptions({"auto", "center", "random", "views"})],
        "aggregation": [
            StrOptions({*AGGREGATIONS, BOUNDED}),
            Interval(Real, 0, None, closed="neither"),
        ],
        "temperature": [
            StrOptions({"auto"}),
            Interval(Real, SMALLEST_TEMPERATURE, None, closed="left"),
        ],
        "class_prior": ["array-like", None],
        "search": [StrOptions({"auto", "exhaustive"}), Interval(Real, 0, 0.5, closed="neither")],
        "augmentation": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left"), None],
        "max_iter": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "posterior_weight": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "finetune": [StrOptions(set(FINETUNE_MODES)), FineTuning],
        "memory": [str, os.PathLike, joblib.Memory, None],
        "checkpoint_dir": [str, os.PathLike, None],
        "n_jobs": [
            Interval(Integral, None, -1, closed="right"),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
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
        image_shape=None,
        decoding="as_seen",
        on_bad_image="raise",
        n_orders=20,
        order="random",
        crop="auto",
        aggregation="mean_log_likelihood",
        temperature=1.0,
        class_prior=None,
        search="auto",
        augmentation="auto",
        max_iter="auto",
        batch_size="auto",
        learning_rate_init="auto",
        posterior_weight="auto",
        class_weight=None,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=2e-2,
        finetune="full",
        memory=None,
        checkpoint_dir=None,
        n_jobs=None,
        device="auto",
        precision="auto",
        random_state=None,
        verbose=0,
    ):
        self.prior = prior
        self.tokenizer = tokenizer
        self.image_shape = image_shape
        self.decoding = decoding
        self.on_bad_image = on_bad_image
        self.n_orders = n_orders
        self.order = order
        self.crop = crop
        self.aggregation = aggregation
        self.temperature = temperature
        self.class_prior = class_prior
        self.search = search
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.posterior_weight = posterior_weight
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.finetune = finetune
        self.memory = memory
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, sample_weight=None):
        """Train the tokenizer and the prior.

        Parameters
        ----------
        X : array-like
            Images, tables or tokens. Images can be arrays or tensors of shape (n_samples, height,
            width), with an optional channel axis as the second or the last axis. Images can also be
            paths of image files, PIL images or, if `image_shape` is set, flat rows. Tables have the
            shape (n_samples, n_features). With ``tokenizer="precomputed"``, X contains integer
            tokens of shape (n_samples, rows, cols) or (n_samples, n_crops, rows, cols). `fit` reads
            small batches of files, memory-mapped arrays and data sets such as
            ``torch.utils.data.Dataset``.
        y : array-like of shape (n_samples,)
            Class labels. `y` is required even if X is a data set of (image, label) pairs.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss and in the class frequencies. A sample of weight n is
            equivalent to n equal samples.

        Returns
        -------
        self : AnyOrderARClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If a parameter, X or y is invalid, if X is a data set with labels that differ from y, or
            if training diverges at every learning rate that `fit` tries.
        OSError
            If `fit` cannot write to `checkpoint_dir`, or if another `fit` is using this folder.

        Warns
        -----
        ConvergenceWarning
            If the loss is still falling when training ends, or if `fit` had to lower the learning
            rate. If warnings are errors, `fit` stores the trained model before it raises the error.
        """
        self._validate_params()
        with collective_call("fit", self._recovery_hint()), result_first():
            return self._fit(X, y, sample_weight)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Continue training on additional images of known or new classes.

        The first call is equivalent to `fit`. Later calls keep the tokenizer and the orders, and
        train for `max_iter` epochs on the new X alone. The log-likelihoods of classes that are not
        in y do not change.

        If y contains new classes, the call trains a copy of the first prior on their images, with
        the mode of `finetune`. In the modes ``"class_embedding"`` and ``"head"``, the call adds
        embeddings of the new classes to the first prior instead. For known classes, the call trains
        all weights of a prior if y contains all classes of this prior. Otherwise, it trains only
        the embeddings of the classes in y.

        Parameters
        ----------
        X, y : array-like
            As in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes known so far. Later calls may add more classes. A class without images has
            probability 0 unless `class_prior` is set.
        sample_weight : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        self : AnyOrderARClassifier
            The fitted classifier.

        Raises
        ------
        ValueError
            If y has labels that are not in `classes`, or if ``temperature="auto"`` or
            ``class_weight="balanced"``. Both settings require images of all classes at once.

        References
        ----------
        van de Ven, Li, Tolias, "Class-incremental learning with generative classifiers",
        arXiv 2104.10093.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skaocls import AnyOrderARClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = AnyOrderARClassifier(max_iter=20, n_orders=4, random_state=0)
        >>> for label in range(3):
        ...     clf = clf.partial_fit(X[y == label], y[y == label])
        >>> clf.classes_
        array([0, 1, 2])
        """
        self._validate_params()
        if self.temperature == "auto":
            raise ValueError(
                'partial_fit does not support temperature="auto", which requires held-out images '
                "of all classes at once. Set temperature to a number, or call fit."
            )
        if self.class_weight == "balanced":
            raise ValueError(
                'class_weight="balanced" is not supported by partial_fit, because it requires the '
                "counts of all classes at once. Pass a dict of weights, or sample_weight."
            )
        fitted = hasattr(self, "model_")
        with collective_call("partial_fit", self._recovery_hint(unchanged=fitted)), result_first():
            train = self._extend if fitted else self._fit
            return train(X, y, sample_weight, classes)

    def predict_joint_log_proba(self, X, return_stats=False):
        """Compute log p(image, class) for each image and class, averaged over orders.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        return_stats : bool, default=False
            Whether to also return how many tokens the transformer processed.

        Returns
        -------
        joint : float64 ndarray of shape (n_samples, n_classes)
            Natural logarithm of p(image, class). The columns follow the order of `classes_`. Each
            log-likelihood is divided by `temperature_` before the log class prior is added.
        stats : dict
            Only returned if `return_stats` is True. ``"evaluations"`` is an array: the number of
            tokens that the transformer processed for each sample. ``"exhaustive_evaluations"`` is
            the number of tokens that it would process per sample with ``search="exhaustive"``.
        """
        joint, evaluations = self._predict_joint(X, may_stop_early=True)
        if not return_stats:
            return joint
        return joint, {
            "evaluations": evaluations,
            "exhaustive_evaluations": self.orders_.size * self.model_.readings,
        }

    def predict_log_proba(self, X):
        """Compute the natural logarithm of the class probabilities.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        log_proba : float64 ndarray of shape (n_samples, n_classes)
            Log-probability of each class. The columns follow the order of `classes_`.
        """
        return self._log_posterior(self.predict_joint_log_proba(X))

    def predict_proba(self, X):
        """Compute the class probabilities, averaged over orders.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        proba : float64 ndarray of shape (n_samples, n_classes)
            Probability of each class. The columns follow the order of `classes_`. If an image has
            zero likelihood under every class, its row is the class prior.
        """
        return np.exp(self.predict_log_proba(X))

    def predict(self, X):
        """Predict the most probable class of each image.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Predicted labels, taken from `classes_`.
        """
        return self._labels(self.predict_joint_log_proba(X))

    def score(self, X, y, sample_weight=None):
        """Compute the accuracy of the predictions.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        y : array-like of shape (n_samples,)
            True labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the mean accuracy.

        Returns
        -------
        score : float
            Accuracy from 0 to 1.
        """
        batch, y, sample_weight = self._open_labeled(X, y, sample_weight)
        return super().score(batch, y, sample_weight)

    def staged_predict_proba(self, X):
        """Compute the class probabilities from the first k orders, for k = 1, 2, ... `n_orders`.

        Each order is scored only once.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Yields
        ------
        proba : float64 ndarray of shape (n_samples, n_classes)
            The k-th array contains the class probabilities from the first k orders. It equals the
            result of `predict_proba` with ``n_orders=k`` and ``search="exhaustive"``.
        """
        for joint in self._staged_joint_log_proba(X):
            yield np.exp(self._log_posterior(joint))

    def staged_predict(self, X):
        """Predict the class of each image from the first k orders, for k = 1, 2, ... `n_orders`.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Yields
        ------
        y : ndarray of shape (n_samples,)
            The k-th array contains the labels that are predicted from the first k orders.
        """
        for joint in self._staged_joint_log_proba(X):
            yield self._labels(joint)

    def staged_score(self, X, y, sample_weight=None):
        """Compute the accuracy with the first k orders, for k = 1, 2, ... `n_orders`.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        y : array-like of shape (n_samples,)
            True labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the mean accuracy.

        Yields
        ------
        score : float
            The k-th number is the accuracy with the first k orders, from 0 to 1.
        """
        batch, y, sample_weight = self._open_labeled(X, y, sample_weight)
        for predicted in self.staged_predict(batch):
            yield accuracy_score(y, predicted, sample_weight=sample_weight)

    def transform(self, X):
        """Compute log p(image | class) for each class, for use as features in a pipeline.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        log_likelihood : float64 ndarray of shape (n_samples, n_classes)
            log p(tokens | class) in nats, aggregated over orders. The parameters `class_prior` and
            `temperature` do not affect the result.
        """
        check_is_fitted(self)
        return self._aggregate_exhaustively(self._open(X), np.zeros(len(self.classes_)))

    def score_samples(self, X):
        """Compute log p(image) for each image, averaged over orders.

        If an image differs from the training images of all classes, its log p(image) is low. The
        result is the sum of two terms. The first term is log p(tokens), the log-likelihood of the
        tokens under all classes together. The second term is the log density of what the tokens
        do not contain. It does not depend on the class, so
        that it does not affect class probabilities. The second term is:

        - for images, if the tokenizer normalizes them: a kernel density estimate of mean and
          contrast. A negative contrast means dark objects on a light background. If the channels
          are normalized separately, each channel has a mean and a contrast. The estimate uses up
          to 64 training images per class, and a Gaussian kernel with half the bandwidth of Scott's
          rule.
        - for tables, with a :class:`QuantileTokenizer`: the sum of ``-4 * log(1 + d)`` over the
          values of a row. d is the distance of the value from the training range of its column, in
          units of the distance between the two outermost bins. Inside the training range, d is 0.
        - in all other cases: 0. These cases are tokens as X, other tokenizers, and classifiers
          that an earlier version of this library saved.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        log_likelihood : float64 ndarray of shape (n_samples,)
            log p(image) in nats, up to a constant. The value depends on `aggregation` and
            `class_prior`, but not on `temperature`.
        """
        check_is_fitted(self)
        batch = self._open(X)
        joint = self._aggregate_exhaustively(batch, self.class_log_prior_)
        density = run_on_main(partial(log_density, self.model_, batch))
        return torch.from_numpy(joint).logsumexp(1).numpy() + density

    def explain(self, X, y=None, rival=None):
        """Compute which parts of an image are evidence for a class.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        y : label or array-like of shape (n_samples,), default=None
            One class to explain for all images, or a class for each image. If None, `explain` uses
            the predicted class.
        rival : "runner-up", label, array-like of shape (n_samples,) or None, default=None
            Class to which `explain` compares the class in `y`: one class for all images, or a class
            for each image. ``"runner-up"`` selects the most probable other class. To find it,
            `explain` scores all orders, as with ``search="exhaustive"``. If None, the evidence is
            log p(token | class) - log p(token). With ``aggregation="bounded"`` or a float, the
            evidence of a class is relative to the mean of all classes and limited by the bound.

        Returns
        -------
        evidence : Evidence
            Evidence of each token and each pixel with standard errors, see
            :class:`skaocls.scoring.evidence.Evidence`. Values are means over the orders, in nats.
            If `crop` selects views, the position of a token in a view can differ from its position
            in the image by 1/16 of the image size.

        Raises
        ------
        ValueError
            If `y` or `rival` contains unknown classes, or an array of other than n_samples classes.
        """
        batch, model = self._open(X), self.model_
        runner_up = isinstance(rival, str) and rival == "runner-up"
        if runner_up and len(self.classes_) < 2:
            raise ValueError('rival="runner-up" needs at least two classes, but there is only one.')
        columns = None if y is None else model.columns(y, len(batch))
        rivals = None
        if rival is not None and not runner_up:
            rivals = model.columns(rival, len(batch), "rival")
        if columns is None or runner_up:
            # early stopping only finds the best class, not the second-best class
            joint, _ = self._predict_joint(batch, may_stop_early=not runner_up)
            ranked = (-where_possible(joint, self.class_log_prior_)).argsort(1, kind="stable")
            columns = ranked[:, 0] if columns is None else columns
            if runner_up:
                rivals = np.where(columns == ranked[:, 0], ranked[:, 1], ranked[:, 0])
        options, bound = self._scoring_options(), self._bound()
        return prediction.explain(model, batch, columns, rivals, self.orders_, options, bound)
        return prediction.explain(model, batch, columns, rivals, self.orders_, options, bound)

    def sample(
        self,
        n_samples=None,
        y=None,
        *,
        random_state=None,
        n_steps=None,
        temperature=1.0,
        top_k=None,
        top_p=None,
        guidance=1.0,
    ):
        """Draw images from the model.

        If the tokenizer normalizes images, `sample` draws the brightness, contrast, polarity and
        colour cast of each image from the training images of its class.

        Parameters
        ----------
        n_samples : int, default=None
            Number of images. If None, `sample` draws one image for each label in the array `y`. If
            `y` is a single label or None, it draws one image.
        y : label or array-like of shape (n_samples,), default=None
            One class for all images, or a class for each image. If None, `sample` draws the
            classes with the probabilities `class_prior_`.
        random_state : int, RandomState instance or None, default=None
            Seed of the classes, orders and tokens.
        n_steps : int, default=None
            Number of sampling steps. If None, each step draws one token, and sampling is exact.
            With fewer steps than tokens, each step draws several tokens independently of each
            other, which is faster but not exact.
        temperature : float, default=1.0
            Number that divides the logits. Temperatures below 1 give more typical and less varied
            images than a temperature of 1.
        top_k : int, default=None
            Number of candidates for each token: `sample` draws from the `top_k` most likely codes.
            If None, all codes are candidates.
        top_p : float, default=None
            Total probability of the candidates for each token: `sample` draws from the smallest set
            of codes with at least this total probability. If None, all codes are candidates.
        guidance : float, default=1.0
            Scale of classifier-free guidance. A guidance above 1 gives images that are more typical
            of their class than a guidance of 1. If `guidance` is not 1, the computation doubles.

        Returns
        -------
        images : float array of shape (n_samples, height, width[, channels])
            Images, as returned by the tokenizer's `inverse_transform`. If the classifier was fitted
            to tables, `sample` returns table rows. If it was fitted to tokens, it returns tokens.

        Raises
        ------
        ValueError
            If a parameter is out of range, if `y` contains unknown classes, or if the length of `y`
            is not `n_samples`.

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
        model = self._checked_model()
        options = sampling_options("sample", n_steps, temperature, top_k, top_p, guidance)
        validate_parameter_constraints(N_SAMPLES, {"n_samples": n_samples}, "sample")
        rng = check_random_state(random_state)
        if n_samples is None:
            n_samples = len(y) if np.ndim(y) else 1
        if y is None:
            probabilities = self.class_prior_ / self.class_prior_.sum()
            columns = rng.choice(len(probabilities), n_samples, p=probabilities)
        else:
            columns = model.columns(y, n_samples)
        orders = generation.generation_orders(model, self.order, self.n_orders, n_samples, rng)
        return generation.generate_images(model, columns, orders, rng, options, device=self.device)

    def inpaint(
        self,
        X,
        mask,
        y=None,
        *,
        random_state=None,
        n_steps=None,
        temperature=1.0,
        top_k=None,
        top_p=None,
        guidance=1.0,
    ):
        """Fill in missing parts of images.

        `inpaint` draws each token that has at least one masked pixel. All other tokens are known.
        In each order, the known tokens come first.

        Parameters
        ----------
        X : array-like
            As in `fit`. Masked pixels may contain NaN or any valid number. With convolutional
            tokenizers, set masked pixels to NaN or gray. All other tokenizers ignore masked pixels.
        mask : bool array-like of shape (height, width) or (n_samples, height, width)
            True for masked pixels. For tables, the shape is (n_features,) or (n_samples,
            n_features). For tokens, the shape is (rows, cols) or (n_samples, rows, cols).
        y : label or array-like of shape (n_samples,), default=None
            One class for all images, or a class for each image. If None, `inpaint` uses the most
            probable class of each image, given its known tokens.
        random_state : int, RandomState instance or None, default=None
            Seed of the orders and tokens.
        n_steps, temperature, top_k, top_p, guidance : optional
            As in :meth:`sample`.

        Returns
        -------
        images : float array of shape (n_samples, height, width[, channels])
            Completed images. Where `mask` is False, the pixels equal X (8-bit values are divided by
            255). Where `mask` is True, the pixels come from the tokenizer's `inverse_transform`.

        Raises
        ------
        ValueError
            If `mask` is not boolean or has a wrong shape, if X contains NaN where `mask` is False,
            if `y` contains unknown classes or not one class per image, or if another parameter is
            out of range.
        """
        model = self._checked_model()
        options = sampling_options("inpaint", n_steps, temperature, top_k, top_p, guidance)
        batch = model.reader.open(X, check_scale=False, allow_nan=True)
        return generation.inpaint_images(
            model,
            batch,
            mask,
            None if y is None else model.columns(y, len(batch)),
            self.order,
            self.n_orders,
            self._aggregation(bounded=False) if y is None else None,
            check_random_state(random_state),
            options,
            self.device,
            self.precision,
        )

    @classmethod
    def from_pretrained(cls, source, *, token=None, tokenizer="auto", classes=None, **params):
        """Load a fitted classifier from published weights or from a saved classifier.

        With published ImageNet weights, the classifier can classify images without `fit`. The class
        labels are the ImageNet indices from 0 to 999, and the class prior is uniform. Image files
        are resized and cropped as in the paper.

        Parameters
        ----------
        source : str, path, PretrainedWeights or module
            Folder or hub repository that `save_pretrained` or `push_to_hub` has written. For
            published weights, see :class:`PretrainedWeights`. A prior module is copied.
        token : str or bool, default=None
            Access token of the hub, as in ``huggingface_hub``.
        tokenizer : "auto", "precomputed" or transformer, default="auto"
            Tokenizer for published weights and prior modules. ``"auto"`` loads the published
            tokenizer that has the vocabulary of the prior. With ``"precomputed"``, X must contain
            tokens instead of images; this option also works with saved classifiers. If you pass a
            fitted transformer, the classifier uses it without changes. A saved classifier has its
            own tokenizer, so you cannot pass a transformer for it.
        classes : list of labels, default=None
            Classes to use: labels in `classes_`, or WordNet IDs or names of ImageNet classes. The
            other classes need no computation. If None, all classes are used.
        **params
            Other parameters of the classifier, by name. For a saved classifier, they replace the
            saved values. Parameters of training only take effect in a later `fit` or `partial_fit`.

        Returns
        -------
        clf : AnyOrderARClassifier
            The fitted classifier. If `source` has published weights, a later `fit` fine-tunes them.

        Raises
        ------
        OSError
            If a file cannot be found or downloaded.
        ValueError
            If a file or an argument is invalid.

        Examples
        --------
        >>> import tempfile
        >>> from sklearn.datasets import load_iris
        >>> from skaocls import AnyOrderARClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = AnyOrderARClassifier(max_iter=5, random_state=0).fit(X, y)
        >>> folder = tempfile.mkdtemp()
        >>> clf.save_pretrained(folder)
        >>> restored = AnyOrderARClassifier.from_pretrained(folder)
        >>> bool((restored.predict_proba(X) == clf.predict_proba(X)).all())
        True
        """
        if "prior" in params:
            raise TypeError(
                "from_pretrained has no parameter prior, because source contains the prior. To "
                "train another prior later, call set_params(prior=...) on the result."
            )
        reject_classifier("source", source)
        saved, history = None, dict[str, Any]()
        if not isinstance(source, Prior):
            saved = saving.load(validated_weights(source), token=token)
        if saved is None:
            clf = cls(prior=source, tokenizer=tokenizer, **params)
            clf._validate_params()
            model = load_pretrained_model(
                source,
                tokenizer,
                check_random_state(clf.random_state),
                cls.__name__,
                image_shape=clf.image_shape,
                decoding=clf.decoding,
                token=token,
            )
        else:
            model, config = saved
            names = cls._get_param_names()
            known, history = saving.read_parameters(config, source, names, TRAINING_HISTORY)
            if isinstance(tokenizer, str) and tokenizer == "precomputed":
                model = reading_tokens(model)
                params = params | {"tokenizer": tokenizer}
            elif not (isinstance(tokenizer, str) and tokenizer == "auto"):
                raise ValueError(
                    f"The prior in {source} only knows the tokens of the saved "
                    f"{type(model.tokenizer).__name__}. Do not pass a tokenizer. To pass tokens of "
                    'this tokenizer as X, use tokenizer="precomputed".'
                )
            clf = cls(**(known | params))
            clf._validate_params()
            reader = model.reader
            if "decoding" in params:
                reader = replace(reader, decoding=clf.decoding)
            if "image_shape" in params:
                reader = with_image_shape(reader, clf.image_shape)
            model = replace(model, reader=reader)
        if classes is not None:
            model = only_classes(model, classes)
        clf._set_fitted(model, **history)._checked_model()
        return clf

    def save_pretrained(self, folder):
        """Save the fitted classifier as JSON and safetensors.

        If the parameter `prior` is a module, only the sizes of the module are saved. The parameters
        `memory` and `checkpoint_dir` are saved as None, and so is a RandomState in `random_state`.

        Parameters
        ----------
        folder : path
            Folder to write to, which is created if it does not exist.

        Raises
        ------
        TypeError
            If the tokenizer's class is not part of this library.
        """
        check_is_fitted(self)
        saving.save(self.model_, folder, self._state_to_save())

    def push_to_hub(self, repo_id, *, metrics=None, private=False, token=None):
        """Upload the fitted classifier and a model card to the Hugging Face hub.

        Parameters
        ----------
        repo_id : str
            Repository as ``owner/name``, which is created if it does not exist.
        metrics : dict of str to float, default=None
            Metrics for the model card, such as ``{"test accuracy": 0.97}``.
        private : bool, default=False
            Whether a newly created repository is private.
        token : str or bool, default=None
            Access token of the hub, as in ``huggingface_hub``.

        Returns
        -------
        url : str
            URL of the commit that contains the classifier.
        """
        check_is_fitted(self)
        state = self._state_to_save()
        return saving.push(self.model_, repo_id, state, metrics or {}, private=private, token=token)

    @property
    def orders_(self):
        check_is_fitted(self)
        return self.model_.orders(self.order, self.n_orders)

    @property
    def class_log_prior_(self):
        """Natural logarithm of the prior probability of each class."""
        check_is_fitted(self)
        return class_log_prior(self.class_prior, self.model_.class_count)

    @property
    def class_prior_(self):
        return np.exp(self.class_log_prior_)

    @property
    def temperature_(self):
        check_is_fitted(self)
        if self.temperature != "auto":
            return float(self.temperature)
        if self._fitted_temperature is None:
            raise NotFittedError(
                'temperature="auto" was set after fit, but fit selects the temperature. Call fit '
                "again, or set temperature to a number."
            )
        return self._fitted_temperature

    def _fit(self, X, y, sample_weight=None, classes=None):
        config, seed = self._training_config(), self._seed()
        if is_new(self.prior) and self.finetune != "full":
            warn(
                f"finetune={self.finetune!r} has no effect in fit, because prior={self.prior!r} is "
                "a new prior and is trained in full. To fine-tune, pass a prior with weights."
            )
        owner, skip = type(self).__name__, self.on_bad_image == "skip"
        prior, tokenizer, shape = resolve_prior(self.prior, self.tokenizer, self.image_shape)
        if isinstance(getattr(tokenizer, "estimator", tokenizer), PrecomputedTokenizer):
            batch = learn_tokens(X, owner)
        else:
            batch = learn_reader(X, owner, shape, decoding=self.decoding, skip_unreadable=skip)
        check_crop(self.crop, batch.reader)
        samples, y, weights = read_labels(batch, y, sample_weight, self.class_weight, owner=owner)
        classes, y = known_classes(y, classes)
        self._check_class_prior(classes)
        result = fit_model(
            samples,
            y,
            weights,
            classes,
            config,
            seed,
            tokenizer=tokenizer,
            pretrained=prior,
            cache=open_cache(self.memory),
            checkpoint_dir=self.checkpoint_dir,
            seeded=self.random_state is not None,
        )
        return self._finish_fit(result, samples, list(batch.skipped))

    def _extend(self, X, y, sample_weight=None, classes=None):
        """Continue training the fitted model on more samples."""
        model, rng = self.model_, np.random.RandomState(self._seed())
        batch = model.reader.open(X, skip_unreadable=self.on_bad_image == "skip")
        owner = type(self).__name__
        samples, y, weights = read_labels(batch, y, sample_weight, self.class_weight, owner=owner)
        classes, y = known_classes(y, classes)
        model = model.with_classes(classes)
        self._check_class_prior(model.classes)
        result = extend_model(model, samples, y, weights, self._training_config(), rng)
        return self._finish_fit(result, samples, list(batch.skipped))

    def _check_class_prior(self, classes):
        class_log_prior(self.class_prior, np.ones(len(classes)))

    def _finish_fit(self, result, batch, skipped):
        """Store the result of training, and warn if the training has not converged."""
        hold_errors()  # also if the result comes from the cache
        model, histories, evidence, held_out, checkpoints = result
        scores = [score for history in histories for score in history.validation_curve]
        n_iter = max(history.n_iter for history in histories)
        temperature = None
        if self.temperature == "auto":
            temperature = self._held_out_temperature(model, batch, held_out)
        self._set_fitted(
            model,
            _fitted_temperature=temperature,
            skipped_images_=skipped,
            loss_curve_=[loss for history in histories for loss in history.loss_curve],
            validation_scores_=scores if self.early_stopping else None,
            n_iter_=n_iter,
            best_iter_=max(history.best_iter for history in histories),
            choices_=histories[0].settings | model.chosen_sizes(),
            place_evidence_=evidence,
        )
        places = deciding_places(evidence) if model.reader.image_shape is not None else {}
        if places and is_main():
            names = model.classes if model.class_names is None else model.class_names
            say(self.verbose, describe(places, names, model.prior.grid))
        if checkpoints is not None:
            checkpoints.clear()
        # for tables, max_iter="auto" ends training before convergence, to avoid overfitting
        limited = isinstance(self.max_iter, str) and model.reader.tabular
        if not limited and not all(h.converged or h.interrupted for h in histories):
            warn(
                f"Stochastic Optimizer: Maximum iterations ({n_iter}) reached and the "
                "optimization hasn't converged yet. Consider increasing max_iter.",
                ConvergenceWarning,
            )
        return self

    def _held_out_temperature(self, model, batch, held_out):
        """Select the temperature that fits the held-out data best."""
        rows, columns, weights = held_out
        results = self._score_batch(model, batch.take(rows))
        aggregation = self.aggregation
        bound = evidence_bound(aggregation, model.prior.n_tokens)
        parts = [result.log_likelihood for result in results]
        if bound is not None:  # the sum of the evidence takes the place of a log-likelihood
            parts = [bounded_evidence(part, bound)[:, None].numpy() for part in parts]
            aggregation = "mean_log_likelihood"
        log_prior = class_log_prior(self.class_prior, model.class_count)
        log_likelihood = np.concatenate(parts)
        return broadcast(fit_temperature(log_likelihood, columns, log_prior, aggregation, weights))

    def _set_fitted(self, model, **attributes):
        """Set all fitted attributes in one step, so that an error cannot leave a partial update."""
        self.__dict__.update({"model_": model, "_fitted_temperature": None} | attributes)
        return self

    def _seed(self):
        """Return `random_state` as an int that is the same in all processes."""
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return broadcast(check_random_state(self.random_state).randint(2**31 - 1))

    def _recovery_hint(self, unchanged=False):
        """Return advice for the user, to be shown if another process dies during training."""
        if unchanged:
            return "The classifier is unchanged. "
        if self.checkpoint_dir is None:
            return "The training is lost. To make the next training resumable, set checkpoint_dir. "
        return (
            "Start the same command again: fit resumes from the last checkpoint in "
            f"checkpoint_dir={os.fspath(self.checkpoint_dir)!r}. "
        )

    def _training_config(self):
        names = {field.name for field in fields(TrainingConfig)} & {*self._get_param_names()}
        params = {name: getattr(self, name) for name in names}
        params["finetune"] = validated_finetuning(self.finetune)
        return TrainingConfig(
            **params,
            **new_prior_sizes(self.prior),
            keep_classes=isinstance(self.prior, Prior),
            hold_out=self.temperature == "auto",
        )

    def _validate_params(self):
        reject_classifier("prior", self.prior)
        reject_classifier("tokenizer", self.tokenizer)
        super()._validate_params()

    def _checked_model(self):
        check_is_fitted(self)
        self._validate_params()
        self._check_class_prior(self.classes_)
        self.model_.orders(self.order, self.n_orders)
        check_crop(self.crop, self.model_.reader)
        resolve_device(self.device)
        return self.model_

    def _bound(self):
        """Return the bound of the evidence in nats, or None without a bound."""
        return evidence_bound(self.aggregation, self.prior_.n_tokens)

    def _scoring_options(self, **options):
        parameters = {k: getattr(self, k) for k in ("crop", "device", "precision", "n_jobs")}
        return prediction.ScoringOptions(**parameters, **options)

    def _score_batch(self, model, batch, stopping=None):
        """Score the images in small batches, and yield one ScoringResult per batch."""
        orders = model.orders(self.order, self.n_orders)
        options = self._scoring_options(
            stopping=stopping,
            cache=open_cache(self.memory),
            per_token=evidence_bound(self.aggregation, model.prior.n_tokens) is not None,
        )
        return prediction.score_batches(model, batch, orders, options, verbose=self.verbose)

    def _early_stopping_rule(self):
        """Return the function for scoring with early stopping, or None for exhaustive scoring."""
        bound, score = self._bound(), score_until_decided
        by_mean = self.aggregation == "mean_log_likelihood" or bound is not None
        if self.search == "exhaustive" or not by_mean or self.memory is not None:
            return None
        if bound is not None:
            score = partial(score_bounded_until_decided, bound=bound)
        return partial(
            score,
            # multiply by the temperature, because the log-likelihoods are not divided by it
            class_log_prior=self.temperature_ * self.class_log_prior_,
            error=STOPPING_ERROR if self.search == "auto" else self.search,
        )

    def _open(self, X):
        """Check the parameters and X, and return X as a batch. Nothing is computed before."""
        with collective_call("A prediction"):
            model = self._checked_model()
        return model.reader.open(X)

    def _open_labeled(self, X, y, sample_weight):
        """Check X and the true labels before predictions are computed."""
        batch = self._open(X)
        y, sample_weight = self.model_.true_labels(batch, y), as_array(sample_weight)
        accuracy_score(y, y, sample_weight=sample_weight)  # raises the errors of the accuracy
        return batch, y, sample_weight

    def _score(self, X, may_stop_early=False):
        batch = self._open(X)
        stopping = self._early_stopping_rule() if may_stop_early else None
        return self._score_batch(self.model_, batch, stopping)

    def _predict_joint(self, X, may_stop_early):
        """Return log p(image, class) and the number of tokens that the transformer processed."""
        results, aggregate = self._score(X, may_stop_early), self._aggregation()
        parts = [(aggregate(result.log_likelihood), result.evaluations) for result in results]
        joint, evaluations = (np.concatenate(part) for part in zip(*parts))
        return joint, evaluations

    def _log_likelihoods(self, X):
        """Yield arrays (n, n_orders, n_classes) of log p(tokens | class, order) for n images."""
        return (result.log_likelihood for result in self._score(X))

    def _aggregate_exhaustively(self, batch, log_prior):
        """Aggregate all orders with the given class prior, without temperature."""
        parts = [
            joint_log_proba(result.log_likelihood, log_prior, self.aggregation)
            for result in self._score_batch(self.model_, batch)
        ]
        return np.concatenate(parts)

    def _aggregation(self, bounded=True):
        """Return the function that converts log-likelihoods to log p(image, class).

        If `bounded` is False and the evidence has a bound, the function uses no bound.
        """
        temperature, log_prior = self.temperature_, self.class_log_prior_
        aggregation = self.aggregation
        if not bounded and self._bound() is not None:
            aggregation = "mean_log_likelihood"
        return lambda ll: joint_log_proba(ll, log_prior, aggregation, temperature)

    def _log_posterior(self, joint):
        possible = torch.from_numpy(where_possible(joint, self.class_log_prior_))
        return possible.log_softmax(1).numpy()

    def _labels(self, joint):
        return self.classes_[where_possible(joint, self.class_log_prior_).argmax(axis=1)]

    def _staged_joint_log_proba(self, X):
        aggregate = self._aggregation()
        stages = [
            [aggregate(ll[:, :k]) for k in range(1, ll.shape[1] + 1)]
            for ll in self._log_likelihoods(X)
        ]
        yield from map(np.concatenate, zip(*stages, strict=True))

    def _state_to_save(self):
        """Return the parameters without folders on this machine, and the training history."""
        params = self.get_params(deep=False) | {"memory": None, "checkpoint_dir": None}
        names = [name for name in TRAINING_HISTORY if hasattr(self, name)]
        return {"params": params, "history": {name: getattr(self, name) for name in names}}

    def get_feature_names_out(self, input_features=None):
        """Return the names of the columns that :meth:`transform` returns.

        Parameters
        ----------
        input_features : object
            Ignored. The names only depend on the class of the estimator and on `classes_`.

        Returns
        -------
        names : ndarray of str objects of shape (n_classes,)
            Each name consists of the lowercase name of the estimator and the label of the class,
            such as ``"anyorderarclassifier_cat"``.
        """
        check_is_fitted(self)
        owner = type(self).__name__.lower()
        return np.array([f"{owner}_{label}" for label in self.classes_], dtype=object)

    def set_params(self, **params):  # inherits the docstring
        for name in params:
            parent, nested, _ = name.partition("__")
            value = params.get(parent, getattr(self, parent, None))
            if nested and isinstance(value, (str, dict)):
                example = NESTED_EXAMPLES.get(parent, f"an estimator as {parent}")
                raise ValueError(
                    f"{name} sets a parameter of {parent}, but {parent}={value!r} has no "
                    f"parameters. Pass {example}."
                )
        return super().set_params(**params)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def sampling_options(method, n_steps, temperature, top_k, top_p, guidance):
    """Validate the sampling options of a method, and return them as a dict."""
    options = {
        "n_steps": n_steps,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "guidance": guidance,
    }
    validate_parameter_constraints(SAMPLING_CONSTRAINTS, options, method)
    return options


def reject_classifier(name, value):
    """Raise a ValueError if an argument is a classifier instead of a part of a classifier."""
    if isinstance(getattr(value, "estimator", value), AnyOrderARClassifier):
        raise ValueError(
            f"{name} must not be a classifier. To reuse what a classifier clf has learned, pass "
            "clf.prior_ as the prior and FrozenEstimator(clf.tokenizer_) as the tokenizer (from "
            "sklearn.frozen import FrozenEstimator)."
        )
