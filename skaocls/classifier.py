"""The scikit-learn estimator."""

import os
from numbers import Integral, Real

import joblib
import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skaocls._fitting import FINETUNE_RATE, FittingMixin
from skaocls._generation import GenerationMixin
from skaocls._prediction import PredictionMixin
from skaocls._sharing import PretrainedMixin
from skaocls.aggregation import AGGREGATIONS
from skaocls.orders import DRAWN
from skaocls.prior import AnyOrderPrior


class AnyOrderARClassifier(
    FittingMixin,
    PredictionMixin,
    GenerationMixin,
    PretrainedMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    ClassifierMixin,
    BaseEstimator,
):
    """Generative image classifier: an any-order autoregressive model, averaged over orders.

    An image becomes a grid of discrete tokens; a transformer that reads tokens in any order
    gives log p(tokens | class, order); Bayes' rule and an average over random orders turn that
    into p(class | image). One order is a poor classifier, twenty are a good one.

    `fit` trains the transformer (the *prior*) on class-conditional likelihood. Numbers in a 2-D
    array are tabular data, one token per feature, unless `image_shape` says that they are images.

    Parameters
    ----------
    prior : "auto", dict, AnyOrderPrior, str or path, default="auto"
        ``"auto"`` is a new prior whose size follows the data. A dict gives sizes of a new prior
        (`dim`, `n_layer`, `n_head`, `multiple_of`, `dropout`). A module is copied, weights are
        loaded (:func:`skaocls.pretrained.load_published`: ``"randar-l"`` and other short names,
        hub repositories, folders, files; also what `save_pretrained` wrote), and both are
        fine-tuned to the classes in y. Weights are worth only as much as the tokens they were
        trained on: with a module, pass its tokenizer in ``sklearn.frozen.FrozenEstimator``.
    tokenizer : "auto" or transformer, default="auto"
        ``"auto"`` is a :class:`PatchTokenizer` for images and a :class:`QuantileTokenizer` for
        tabular data; with loaded weights the tokenizer saved with them, or the published one
        of their vocabulary. Another one is cloned and fitted, unless frozen; see
        :mod:`skaocls.tokenizers`.
    filename : str, default=None
        File of the weights within a repository or folder that `prior` names.
    revision : str, default=None
        Branch, tag or commit of a repository that `prior` names.
    n_orders : int, default=20
        Orders to average over. May be changed after `fit`: orders are nested, the first k of 20
        are those of ``n_orders=k``.
    order : {"random", "antithetic", "raster"} or array-like of shape (n, n_tokens), \
default="random"
        ``"random"`` draws `n_orders` permutations, ``"antithetic"`` half as many and reads each of
        them also backwards, which needs fewer orders; ``"raster"`` is the one order row by row, an
        array holds permutations of raster indices (the first `n_orders` are used). `fit` trains
        for the orders that it is given: all permutations if they are drawn. May be changed after
        `fit`, which reads the same prior in other orders.
    aggregation : {"mean_log_likelihood", "mean_posterior", "logsumexp"}, \
default="mean_log_likelihood"
        How orders are combined, see :func:`skaocls.aggregation.joint_log_proba`. May be changed
        after `fit`.
    temperature : float or "auto", default=1.0
        Log-likelihoods are divided by it before they are combined: above 1, probabilities are
        less sure. ``"auto"`` holds out `validation_fraction` of the data in `fit` and takes the
        temperature under which their labels are most probable
        (:func:`skaocls.calibration.fit_temperature`). A number may be changed after `fit`.
    search : {"exhaustive", "racing"}, default="exhaustive"
        ``"exhaustive"`` reads every class in every order. ``"racing"`` reads all classes together,
        a few tokens at a time, and drops those that have fallen too far behind
        (:mod:`skaocls.racing`): with many classes, a small share of the work. The posterior of a
        class that was dropped is what it was at its exit. May be changed after `fit`.
    racing_error : float, default=1e-3
        Allowed probability that racing drops the class that exhaustive search ranks first. May be
        changed after `fit`.
    racing_screen : int, default=None
        How many classes of each image enter a race, the best by a first-order estimate that costs
        a few passes for all classes together (:mod:`skaocls.screening`). None is all of them; with
        hundreds of classes a tenth of them is enough for priors like those of
        ``benchmarks/screening.py``, on others measure first. May be changed after `fit`.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of the images if X holds flat rows; size to which image files are resized.
    augmentation : int, "auto" or None, default="auto"
        Views of each image to train on: itself, and small shifts, turns and stretches of it
        (:func:`skaocls.augmentation.random_views`), tokenized once. ``"auto"`` is 16, or 4 with
        the published tokenizers, which take seconds for an image on a CPU. None, and tabular
        data: the data as it is.
    max_iter : int, default=120
        Epochs.
    batch_size : int or "auto", default="auto"
        Images per training step. ``"auto"`` is an eighth of them, between 16 and 64.
    learning_rate_init : float or "auto", default="auto"
        Peak learning rate; it warms up over 5 % of the steps, then falls to a 20th by a cosine.
        ``"auto"`` is ``0.4 / dim`` for a new prior, which is the published 4e-4 at the published
        width of 1024; a tenth of that for ``finetune="full"``, half of it for ``"lora"``, and
        five times as much for ``"class_embedding"``.
    micro_batch_size : int, default=None
        Images per forward pass if fewer than `batch_size`: gradients are accumulated, which saves
        memory and changes nothing else.
    checkpointing : bool, default=False
        Compute activations again in the backward pass instead of keeping them: less memory for
        about a third more time.
    finetune : {"full", "lora", "class_embedding"}, default="full"
        What training changes if `prior` is given or loaded: all weights; low-rank updates of the
        attention and feed-forward matrices (merged afterwards) and class vectors; class vectors
        alone.
    lora_rank : int, default=8
        Rank of the updates of ``finetune="lora"``.
    lora_alpha : float, default=16.0
        They are multiplied by ``lora_alpha / lora_rank``.
    new_classes : {"nearest", "null"}, default="nearest"
        Where the class vectors start if a given or loaded prior has not as many classes as y, or
        was loaded by name: at the mean of the three old classes under which a few images of the
        new class are most likely, or at the null class.
    weight_decay : float, default=0.05
        Weight decay of AdamW, on matrices only.
    class_dropout : float, default=0.1
        Share of training labels replaced by the null class, so that the prior also knows
        log p(tokens).
    early_stopping : bool, default=False
        Hold out `validation_fraction` of the data, stop when its likelihood no longer rises, and
        keep the best weights.
    validation_fraction : float, default=0.1
        Share of the training data held out (stratified) if `early_stopping`, or for
        ``temperature="auto"``.
    n_iter_no_change : int, default=10
        Epochs without a change of `tol` that end training if `early_stopping`; also the window at
        the end of training in which convergence is judged.
    tol : float, default=2e-2
        Change of the loss, in nats per token, that counts as none.
    crop : {"center", "random"}, default="center"
        ``"random"`` reads a crop of its own for each order: the image is enlarged by a tenth and
        cut to its size at a place drawn from `random_state`, the same for all images; images
        under 64 pixels are shifted instead, their edges repeated. May be changed after `fit`.
    latent_noise : float, default=0.0
        t in ``(1 - t) latent + t noise``, applied before quantization with new noise for each
        order, the same for all images; the tokenizer must know it. May be changed after `fit`.
    warm_start : bool, default=False
        `fit` goes on from the last one's tokenizer, prior and orders.
    priors : array-like of shape (n_classes,), default=None
        Class probabilities. None takes the frequencies in y.
    memory : str, path or joblib.Memory, default=None
        Folder where `fit` keeps what it learned from the same data under the same training
        parameters, and predictions the log-likelihoods of the same tokens under each order; a
        search over `n_orders`, `aggregation`, `temperature`, `priors` or `search` then trains once
        for each fold. As in scikit-learn's ``Pipeline``, also for ``random_state=None``. Entries
        are pickles; their total size is kept below 10 GiB, those not used for longest go first.
        Without a folder nothing is kept from call to call. Not used by `partial_fit`, with
        `warm_start`, and for the reading of a race.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA if there is a device, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Type of the matrix products. ``"auto"`` is bfloat16 on CUDA devices that have it, else
        float32; for predictions it is bfloat16 also on CPUs that have it if the prior is at least
        512 wide, and only if a probe shows that classes keep their distances
        (:func:`skaocls.scoring.bfloat16_is_safe`). Log-likelihoods are summed in float64 in any
        case.
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
        Training images of each class, or the sum of their weights.
    class_prior_, class_log_prior_ : ndarray of shape (n_classes,)
        Probability of each class, and its log.
    added_priors_ : list of AnyOrderPrior
        Priors of the classes that `partial_fit` added.
    class_sources_ : int ndarray of shape (n_classes,)
        Which prior reads each class: 0 is `prior_`, k is ``added_priors_[k - 1]``.
    class_rows_ : int ndarray of shape (n_classes,)
        Row of each class in that prior's class table.
    class_names_, wordnet_ids_ : ndarray of shape (n_classes,)
        Names and WordNet ids, if the classes are ImageNet's.
    image_shape_ : tuple of int or None
        Height, width and channels of the images; None for tabular data.
    loss_curve_ : list of float
        Mean training loss of each epoch, in nats per token.
    temperature_ : float
        What log-likelihoods are divided by.
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
    class_count_: np.ndarray
    prior_: AnyOrderPrior

    _parameter_constraints: dict = {
        "prior": [str, os.PathLike, dict, AnyOrderPrior],
        "filename": [str, None],
        "revision": [str, None],
        "tokenizer": [StrOptions({"auto"}), HasMethods(["fit", "transform"])],
        "n_orders": [Interval(Integral, 1, None, closed="left")],
        "order": [StrOptions({*DRAWN, "raster"}), "array-like"],
        "aggregation": [StrOptions(set(AGGREGATIONS))],
        "temperature": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "search": [StrOptions({"exhaustive", "racing"})],
        "racing_error": [Interval(Real, 0, 0.5, closed="neither")],
        "racing_screen": [Interval(Integral, 1, None, closed="left"), None],
        "image_shape": [tuple, list, None],
        "augmentation": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "micro_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "checkpointing": ["boolean"],
        "finetune": [StrOptions(set(FINETUNE_RATE))],
        "lora_rank": [Interval(Integral, 1, None, closed="left")],
        "lora_alpha": [Interval(Real, 0, None, closed="neither")],
        "new_classes": [StrOptions({"nearest", "null"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "class_dropout": [Interval(Real, 0, 1, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "crop": [StrOptions({"center", "random"})],
        "latent_noise": [Interval(Real, 0, 1, closed="both")],
        "warm_start": ["boolean"],
        "memory": [str, os.PathLike, joblib.Memory, None],
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
        filename=None,
        revision=None,
        n_orders=20,
        order="random",
        aggregation="mean_log_likelihood",
        temperature=1.0,
        search="exhaustive",
        racing_error=1e-3,
        racing_screen=None,
        image_shape=None,
        augmentation="auto",
        max_iter=120,
        batch_size="auto",
        learning_rate_init="auto",
        micro_batch_size=None,
        checkpointing=False,
        finetune="full",
        lora_rank=8,
        lora_alpha=16.0,
        new_classes="nearest",
        weight_decay=0.05,
        class_dropout=0.1,
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=2e-2,
        crop="center",
        latent_noise=0.0,
        warm_start=False,
        priors=None,
        memory=None,
        device="auto",
        precision="auto",
        random_state=None,
        verbose=0,
    ):
        self.prior = prior
        self.tokenizer = tokenizer
        self.filename = filename
        self.revision = revision
        self.n_orders = n_orders
        self.order = order
        self.aggregation = aggregation
        self.temperature = temperature
        self.search = search
        self.racing_error = racing_error
        self.racing_screen = racing_screen
        self.image_shape = image_shape
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.micro_batch_size = micro_batch_size
        self.checkpointing = checkpointing
        self.finetune = finetune
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.new_classes = new_classes
        self.weight_decay = weight_decay
        self.class_dropout = class_dropout
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.crop = crop
        self.latent_noise = latent_noise
        self.warm_start = warm_start
        self.priors = priors
        self.memory = memory
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, sample_weight=None):
        """Train tokenizer and prior.

        Parameters
        ----------
        X : array-like
            Images: arrays or tensors of shape (n_samples, height, width) or
            (n_samples, height, width, channels), flat rows with `image_shape`, paths of image
            files, PIL images. Or tabular data of shape (n_samples, n_features).
        y : array-like of shape (n_samples,)
            Class labels, of any type.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in the loss and in the class frequencies. A weight of n is the same as n equal
            samples, of 0 as none: equal samples are merged into one that weighs as much.

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
        if self.warm_start and hasattr(self, "prior_"):
            return self._go_on(X, y, sample_weight)
        return self._begin(X, y, sample_weight)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train on further images, of known classes or of new ones.

        The first call is a `fit`. Later ones keep the tokenizer and the orders, train for
        `max_iter` epochs on X alone, and move no class that is not in y, not by a bit: a new class
        gets a prior of its own, which starts from the first one and is trained as `finetune` says
        (with ``"class_embedding"`` only a vector in the first prior). Known classes that were
        learned together are trained together if all of them are in y, else only their vectors.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes that are known to come. Unlike in other estimators they need not be given,
            and more may come later. A class without images yet has probability 0, unless `priors`
            says otherwise.

        Returns
        -------
        self : AnyOrderARClassifier

        Raises
        ------
        ValueError
            If y has labels that `classes` has not, or ``temperature="auto"``, which needs held-out
            images of all classes at once.

        References
        ----------
        van de Ven, Li, Tolias, "Class-incremental learning with generative classifiers",
        arXiv 2104.10093, for a likelihood model of its own for each class.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from skaocls import AnyOrderARClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = AnyOrderARClassifier(max_iter=20, n_orders=4, random_state=0)
        >>> for kind in range(3):
        ...     clf = clf.partial_fit(X[y == kind], y[y == kind])
        >>> clf.classes_
        array([0, 1, 2])
        """
        self._validate_params()
        if self.temperature == "auto":
            raise ValueError(
                'partial_fit does not support temperature="auto": it needs held-out images of all '
                "classes at once. Pass a number, or call fit."
            )
        if hasattr(self, "prior_"):
            return self._go_on(X, y, sample_weight, grow=True, classes=classes)
        return self._begin(X, y, sample_weight, classes)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags
