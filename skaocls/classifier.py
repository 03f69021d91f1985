"""The scikit-learn estimator."""

import copy
import inspect
import os
from dataclasses import fields, replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils import _safe_indexing, check_consistent_length, check_random_state
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.validation import check_is_fitted

from skaocls.attributes import kept_in
from skaocls.distributed import broadcast, collective_call
from skaocls.fitted import generation, prediction, saving
from skaocls.fitted.config import TrainingConfig
from skaocls.fitted.effects import OF_SEARCH, OF_TRAINING, without_effect
from skaocls.fitted.fit import FINETUNE_RATE, extend_model, fit_model
from skaocls.fitted.initialization import new_prior_sizes, resolve_prior
from skaocls.fitted.labels import class_log_prior, known_classes, read_labels
from skaocls.fitted.pretrained import (
    grid_for,
    is_published,
    load_published,
    published_model,
    reading_tokens,
    ready_tokenizer,
)
from skaocls.fitted.result_cache import open_cache
from skaocls.images.advice import gathered
from skaocls.images.inputs import check_image_shape, shortened
from skaocls.images.reader import (
    all_bad_named,
    find_unreadable,
    learn_reader,
    learn_tokens,
)
from skaocls.priors.interface import Prior
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba, where_possible
from skaocls.scoring.calibration import fit_temperature
from skaocls.scoring.orders import DRAWN
from skaocls.scoring.racing import race
from skaocls.scoring.sampling import SAMPLING_CONSTRAINTS, SamplingOptions
from skaocls.scoring.stopping import stop_early
from skaocls.tokenizers import PrecomputedTokenizer
from skaocls.warn import warn

COLDEST = 1e-30  # temperature by which log-likelihoods can be divided without an overflow
N_SAMPLES = {"n_samples": [Interval(Integral, 1, None, closed="left"), None]}
# Fitted attributes that are not of the model, and so are saved beside it
ABOUT = (
    "class_log_prior_",
    "loss_curve_",
    "validation_scores_",
    "n_iter_",
    "best_iter_",
    "choices_",
    "skipped_images_",
    "_fitted_temperature",
)


class AnyOrderARClassifier(TransformerMixin, ClassifierMixin, BaseEstimator):
    """Generative image classifier: an any-order autoregressive model, averaged over orders.

    An image becomes a grid of discrete tokens; a transformer that reads tokens in any order
    gives log p(tokens | class, order); Bayes' rule and an average over random orders turn that
    into p(class | image): twenty orders classify better than one.

    `fit` trains the transformer (the *prior*) on class-conditional likelihood. Numbers in a 2-D
    array are tabular data, one token per feature, unless `image_shape` says that they are images.

    Parameters by what they are for:

    - images and model: `image_shape`, `decoding`, `on_bad_image`, `tokenizer`, `prior`, `filename`,
      `revision`;
    - orders and the answer, which may be changed after `fit`: `n_orders`, `order`, `aggregation`,
      `temperature`, `search`, `racing_error`, `racing_screen`, `crop`, `latent_noise`; before it
      `priors`;
    - training: `max_iter`, `batch_size`, `learning_rate_init`, `augmentation`, `weight_decay`,
      `class_dropout`, `posterior_weight`, `class_weight`, `early_stopping`, `validation_fraction`,
      `n_iter_no_change`, `tol`, `warm_start`;
    - fine-tuning: `finetune`, `lora_rank`, `lora_alpha`, `finetune_dropout`, `new_classes`;
    - resources: `checkpoint_dir`, `memory`, `micro_batch_size`, `checkpointing`, `parallel`,
      `n_jobs`, `device`, `precision`, `random_state`, `verbose`.

    Parameters
    ----------
    prior : "auto", "shared_trunk", "randar", dict, module, str or path, default="auto"
        The network that knows log p(tokens | class, order); class probabilities are `priors`.
        ``"auto"`` and ``"shared_trunk"`` are a new :class:`SharedTrunkPrior`, which reads an image
        once for all classes, ``"randar"`` is a new :class:`AnyOrderPrior`, the published
        architecture, which reads it once for each; their size follows the data. A dict gives sizes
        of a new prior (`dim`, `n_layer`, `n_head`, `multiple_of`, `dropout`; of a shared trunk also
        `width` and `rank`) and may name its `architecture`. A module is copied, weights are
        loaded (:func:`skaocls.fitted.pretrained.load_published`: ``"randar-l"`` and other short
        names, hub repositories, folders, files; also what `save_pretrained` wrote), and both are
        fine-tuned to the classes in y. Weights are worth only as much as the tokens they were
        trained on: with a module, pass its tokenizer in ``sklearn.frozen.FrozenEstimator``.
    tokenizer : "auto", "precomputed" or transformer, default="auto"
        ``"auto"`` is a :class:`PatchTokenizer` for images and a :class:`QuantileTokenizer` for
        tabular data; with loaded weights the tokenizer saved with them, or the published one
        of their vocabulary. With ``"precomputed"`` X holds tokens: integers of shape
        (n_samples, rows, cols), or (n_samples, n_crops, rows, cols) with several crops of each
        image, which are views to train on and which orders read in turn
        (:class:`PrecomputedTokenizer`, where the number of token values can be given). Another
        one is cloned and fitted, unless frozen; see
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
        How orders are combined, see :func:`skaocls.scoring.aggregation.joint_log_proba`. May be
        changed after `fit`.
    temperature : float or "auto", default=1.0
        Log-likelihoods are divided by it before they are combined: above 1, probabilities are
        less sure. At least 1e-30. ``"auto"`` holds out `validation_fraction` of the data in `fit`
        and takes the temperature under which their labels are most probable
        (:func:`skaocls.scoring.calibration.fit_temperature`). A number may be changed after `fit`.
    search : {"auto", "exhaustive", "racing"}, default="auto"
        ``"exhaustive"`` scores every class in every order. ``"racing"`` drops classes that have
        fallen too far behind, and reads no further order of an image that is decided
        (:mod:`skaocls.scoring.racing`): a small share of the work, with a shared trunk because few
        orders are read, with the published architecture because few classes are read far. The
        posterior of a class that was dropped is what it was at its exit. ``"auto"`` reads all
        classes, and no further order of an image that is decided
        (:mod:`skaocls.scoring.stopping`): in `predict`, `predict_proba` and their like, with a
        shared trunk, `aggregation` at its default and no `memory`, where the classes were those of
        exhaustive search (``benchmarks/waiting.py``). Staged answers, `transform`, `score_samples`
        and `explain` read every order. May be changed after `fit`.
    racing_error : float, default=1e-3
        Allowed probability that an image is decided for another class than exhaustive search ranks
        first, above 0 and below 0.5. May be changed after `fit`.
    racing_screen : int, default=None
        How many classes of each image enter a race, the best by a first-order estimate that costs
        a few passes for all classes together (:mod:`skaocls.scoring.screening`). None is all of
        them; with hundreds of classes a tenth of them is enough for priors like those of
        ``benchmarks/screening.py``, on others measure first. A shared trunk has no use for it. May
        be changed after `fit`.
    image_shape : tuple of int (height, width) or (height, width, channels), default=None
        Shape of the images if X holds flat rows; size to which image files are resized; says where
        the channels of arrays are if they may be first or last.
    decoding : {"as_seen", "plain"}, default="as_seen"
        How image files and PIL images are read: as a person sees them, with EXIF rotation applied
        and transparency laid over white, or by a plain conversion to RGB that ignores both, as the
        published numbers were made (:func:`skaocls.images.to_pixels`). They are read ever after as
        in `fit` or :meth:`from_pretrained`.
    on_bad_image : {"raise", "skip"}, default="raise"
        What `fit` and `partial_fit` do with files and PIL images that cannot be read: an error
        that names all of them at once, or a warning that does so, and training on the others,
        for which all files are decoded once more. `skipped_images_` are their indices. Predictions
        have no row to leave out and always raise; :func:`skaocls.images.find_unreadable` tells
        what to leave out before.
    augmentation : int, "auto" or None, default="auto"
        Views of each image to train on: itself, and small shifts, turns and stretches of it
        (:func:`skaocls.images.augmentation.random_views`), tokenized once. ``"auto"`` is 16, or 4
        with the published tokenizers, which take seconds for an image on a CPU. None, and tabular
        data: the data as it is.
    max_iter : int or "auto", default="auto"
        Epochs. ``"auto"`` is 120 for images, or as many as a budget of operations pays for, 10 at
        least: about a minute on two cores for up to 1000 images, eight minutes for 10,000, and
        no faster growing than their number (:mod:`skaocls.fitted.lengths`). A given prior is
        trained for 120. Of tables it is 30, or as many as the same budget pays for, 10 at least:
        with more, small tables are overfitted (``benchmarks/tables.py``).
    batch_size : int or "auto", default="auto"
        Images or rows per training step. ``"auto"`` is as many as have 1024 tokens, at most an
        eighth of the images, a 32nd of the rows; between 16 and 64.
    learning_rate_init : float or "auto", default="auto"
        Peak learning rate; it warms up over 5 % of the steps, then falls to a 20th by a cosine.
        ``"auto"`` is ``0.4 / dim`` for a new prior, which is the published 4e-4 at the published
        width of 1024; a tenth of that for ``finetune="full"``, half of it for ``"lora"``, as much
        for ``"head"``, and five times as much for ``"class_embedding"``.
    micro_batch_size : int, default=None
        Images per forward pass if fewer than `batch_size`: gradients are accumulated, which saves
        memory and changes nothing else.
    checkpointing : bool, default=False
        Compute activations again in the backward pass instead of keeping them: less memory for
        about a third more time.
    parallel : {"ddp", "fsdp"}, default="ddp"
        How the processes that ``torchrun`` starts share the training. In ``"ddp"`` each holds all
        weights and takes its share of every batch. In ``"fsdp"`` each also holds only its piece of
        the weights, gradients, optimizer and running mean while training, for priors whose
        training does not fit into one device: six times the weights are shared out, for
        more that is sent. The result is the same. Started without ``torchrun`` it does nothing.
    finetune : {"full", "lora", "class_embedding", "head"}, default="full"
        What training changes if `prior` is given or loaded: all weights; low-rank updates of the
        attention and feed-forward matrices (merged afterwards) and class vectors; class vectors
        alone; or a light head for the classes in y on a transformer that stays as it is and reads
        an image once for all of them (:class:`SharedTrunkPrior`).
    lora_rank : int, default=8
        Rank of the updates of ``finetune="lora"``.
    lora_alpha : float, default=16.0
        They are multiplied by ``lora_alpha / lora_rank``.
    finetune_dropout : float or "auto", default="auto"
        Share of the image tokens' embeddings, and of what attention and feed-forward layers add,
        that is dropped while fine-tuning given weights. ``"auto"`` is that of the published recipe,
        0.1, where the transformer itself is trained (``"full"``, ``"lora"``), else 0.
    new_classes : {"nearest", "null"}, default="nearest"
        Where the class vectors start if a given or loaded prior has not as many classes as y, or
        was loaded by name: at the mean of the three old classes under which a few images of the
        new class are most likely, or at the null class.
    weight_decay : float, default=0.05
        Of the optimizer, on matrices only.
    class_dropout : float, default=0.1
        Share of training labels replaced by the null class, so that the prior also knows
        log p(tokens).
    posterior_weight : float or "auto", default="auto"
        How often -log p(class | tokens, order) of an image, by Bayes' rule, is counted in training
        beside its -log p(tokens | class, order). With 0 training is purely generative, the
        published recipe. ``"auto"`` is 5 where a `SharedTrunkPrior` is trained as a whole, which
        reads an image once for all classes, and less in proportion to the number of tokens if they
        are fewer than 48; on tables, which are soon overfitted, a thirtieth of the number of
        columns. What it gains differs (``benchmarks/posterior.py``). Else it is 0: with the
        published architecture each other class, 9 of them at most, is one more reading of the image
        (:mod:`skaocls.training.posterior`).
    early_stopping : bool, default=False
        Hold out `validation_fraction` of the data, stop when its likelihood no longer rises, and
        keep the best weights.
    validation_fraction : float, default=0.1
        Share of the training data held out (stratified) if `early_stopping`, or for
        ``temperature="auto"``.
    n_iter_no_change : int, default=10
        Epochs without a change of `tol` that end training if `early_stopping`. Without it, the last
        so many epochs, at most a quarter of all, tell whether training converged.
    tol : float, default=2e-2
        Rise of the held-out log-likelihood, or fall of the training loss per epoch, in nats per
        token, that counts as none. Without `early_stopping` it decides only about a warning.
    crop : {"auto", "center", "views", "random"}, default="auto"
        What of an image the orders read. ``"center"``: all the same. ``"views"``: the first the
        image, each other one a view of its own, shifted, turned and stretched half as far as those
        in training, so that the average is over views as well; much more accurate where tokens
        are patches, whose edges lie elsewhere in each view (``benchmarks/posterior.py``).
        ``"auto"`` is that after `fit` drew views (`augmentation`) for a fast tokenizer, else
        ``"center"``.
        ``"random"`` reads a crop of its own for each order, as the paper does: the image as it
        came, a file at its full size, is resized so that its shorter side has between 1 and 1.25
        times the pixels that are wanted, and a window is cut out anywhere
        (:func:`skaocls.images.crops.random_crop`). Scale and place are drawn from `random_state`,
        the same for all images. Arrays have the wanted size already and are resized all the same;
        only images under 64 pixels that have it, arrays or files, are shifted instead, their edges
        repeated, which is not the paper's. May be changed after `fit`.
    latent_noise : float, default=0.0
        t in ``(1 - t) latent + t noise``, applied before quantization with new noise for each
        order, the same for all images; the tokenizer must know it. May be changed after `fit`.
    warm_start : bool, default=False
        `fit` goes on from the last one's tokenizer, prior and orders.
    priors : array-like of shape (n_classes,), default=None
        Class probabilities; the network is `prior`. None takes the frequencies in y, weighted.
    class_weight : dict, "balanced" or None, default=None
        Weights of classes, by which those of their samples are multiplied in training and in the
        class frequencies. ``"balanced"`` makes all classes weigh the same, ``n_samples /
        (n_classes * np.bincount(y))``. None weighs all samples alike.
    memory : str, path or joblib.Memory, default=None
        Folder where `fit` keeps what it learned from the same data under the same training
        parameters, and predictions the log-likelihoods of the same tokens under each order; a
        search over `n_orders`, `aggregation`, `temperature`, `priors` or `search` then trains once
        for each fold. As in scikit-learn's ``Pipeline``, also for ``random_state=None``. A
        prediction that was killed reads again at most one order of 256 images. Entries are written
        whole or not at all; damaged ones are dropped with a warning and made again, and where
        nothing can be written a warning says so. Those of `fit` are pickles. Their total size is
        kept below 10 GiB, those not used for longest go first.
        Without a folder nothing is kept from call to call. Not used where `partial_fit` or
        `warm_start` go on from what was learned, and for the reading of a race.
    checkpoint_dir : str or path, default=None
        Folder in which `fit` writes, while it trains, all that it needs to go on: weights,
        optimizer, generators and place in the data, the last two good states, as safetensors and
        JSON. Writing takes at most a twentieth of the time. A `fit` that was killed, or ended by
        Ctrl-C, and is called again with the same data and parameters goes on from there by itself,
        on a CPU to the same weights bit for bit; tokenizer and tokens are made again. So it is for
        ``random_state=None``, whose seed is written, too. Checkpoints of other data or parameters
        are refused. When `fit` comes to its end, it removes them; to keep what it learned, use
        `memory` or save it. One `fit` at a time uses a folder. Not used where `partial_fit` or
        `warm_start` go on from what was learned.
    n_jobs : int, default=None
        Workers that share predictions and `explain`: processes, or what
        ``joblib.parallel_config`` names, such as a Dask or Ray cluster. None is 1 unless that says
        otherwise, -1 all processors. Images are shared out, few images also by their orders and
        classes; answers stay the same. The model gets to each worker once, and what a worker that
        dies had begun is computed by another. Each computes in one thread, unless
        ``inner_max_num_threads`` is configured, and on a CUDA device of its own, if there are
        enough of them. Training does not use it. May be changed after `fit`.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA if there is a device, else the CPU.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Type of the matrix products. ``"auto"`` is bfloat16 on CUDA devices that have it, else
        float32; for predictions it is bfloat16 also on CPUs that have it if the prior is at least
        512 wide, and only if a probe shows that classes keep their distances
        (:func:`skaocls.scoring.exhaustive.bfloat16_is_safe`). Log-likelihoods are summed in float64
        in any case.
    random_state : int, RandomState instance or None, default=None
        Governs tokenizer, initial weights, training and orders. Pass an int for the same model
        from the same data.
    verbose : int, default=0
        1 shows how far tokenizing, training and predicting are, with loss, an estimate of the
        accuracy, and the time left: a bar in a terminal or notebook, in a log a line every few
        seconds. 2 says also what was chosen for the data, and why.

    Attributes
    ----------
    model_ : FittedModel
        All that was learned as one value, see :class:`skaocls.fitted.FittedModel`; the attributes
        below are read from it.
    classes_ : ndarray of shape (n_classes,)
        Class labels.
    prior_ : SharedTrunkPrior or AnyOrderPrior
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
    added_priors_ : list of priors
        Priors of the classes that `partial_fit` added.
    class_sources_ : int ndarray of shape (n_classes,)
        Which prior reads each class: 0 is `prior_`, k is ``added_priors_[k - 1]``.
    class_rows_ : int ndarray of shape (n_classes,)
        Row of each class in that prior's class table.
    class_names_, wordnet_ids_ : ndarray of shape (n_classes,)
        Names and WordNet ids, if the classes are ImageNet's.
    image_shape_ : tuple of int or None
        Height, width and channels of the images; None for tabular data and tokens.
    skipped_images_ : list of int
        Indices in X of the images that the last `fit` or `partial_fit` could not read.
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
    choices_ : dict of str to object
        What parameters that are left to us became, so that it can be passed: `max_iter`,
        `batch_size`, `learning_rate_init`, `prior` (its sizes) and `tokenizer` (parameters of the
        tokenizer).
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

    classes_ = kept_in("model_.classes")
    prior_ = kept_in("model_.prior")
    added_priors_ = kept_in("model_.added_priors")
    tokenizer_ = kept_in("model_.tokenizer")
    class_count_ = kept_in("model_.class_count")
    class_sources_ = kept_in("model_.sources")
    class_rows_ = kept_in("model_.rows")
    class_names_ = kept_in("model_.class_names", optional=True)
    wordnet_ids_ = kept_in("model_.wordnet_ids", optional=True)
    image_shape_ = kept_in("model_.reader.image_shape")
    n_features_in_ = kept_in("model_.reader.n_features")
    feature_names_in_ = kept_in("model_.reader.feature_names", optional=True)

    _parameter_constraints: dict[str, Any] = {
        "prior": [str, os.PathLike, dict, Prior],
        "filename": [str, None],
        "revision": [str, None],
        "tokenizer": [StrOptions({"auto", "precomputed"}), HasMethods(["fit", "transform"])],
        "n_orders": [Interval(Integral, 1, None, closed="left")],
        "order": [StrOptions({*DRAWN, "raster"}), "array-like"],
        "aggregation": [StrOptions(set(AGGREGATIONS))],
        "temperature": [StrOptions({"auto"}), Interval(Real, COLDEST, None, closed="left")],
        "search": [StrOptions({"auto", "exhaustive", "racing"})],
        "racing_error": [Interval(Real, 0, 0.5, closed="neither")],
        "racing_screen": [Interval(Integral, 1, None, closed="left"), None],
        "image_shape": [tuple, list, None],
        "decoding": [StrOptions({"as_seen", "plain"})],
        "on_bad_image": [StrOptions({"raise", "skip"})],
        "augmentation": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            None,
        ],
        "max_iter": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate_init": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "micro_batch_size": [Interval(Integral, 1, None, closed="left"), None],
        "checkpointing": ["boolean"],
        "parallel": [StrOptions({"ddp", "fsdp"})],
        "finetune": [StrOptions(set(FINETUNE_RATE))],
        "lora_rank": [Interval(Integral, 1, None, closed="left")],
        "lora_alpha": [Interval(Real, 0, None, closed="neither")],
        "finetune_dropout": [Interval(Real, 0, 1, closed="left"), StrOptions({"auto"})],
        "new_classes": [StrOptions({"nearest", "null"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "class_dropout": [Interval(Real, 0, 1, closed="left")],
        "posterior_weight": [Interval(Real, 0, None, closed="left"), StrOptions({"auto"})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "crop": [StrOptions({"auto", "center", "random", "views"})],
        "latent_noise": [Interval(Real, 0, 1, closed="both")],
        "warm_start": ["boolean"],
        "memory": [str, os.PathLike, joblib.Memory, None],
        "checkpoint_dir": [str, os.PathLike, None],
        "priors": ["array-like", None],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "n_jobs": [Integral, None],
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
        search="auto",
        racing_error=1e-3,
        racing_screen=None,
        image_shape=None,
        decoding="as_seen",
        on_bad_image="raise",
        augmentation="auto",
        max_iter="auto",
        batch_size="auto",
        learning_rate_init="auto",
        micro_batch_size=None,
        checkpointing=False,
        parallel="ddp",
        finetune="full",
        lora_rank=8,
        lora_alpha=16.0,
        finetune_dropout="auto",
        new_classes="nearest",
        weight_decay=0.05,
        class_dropout=0.1,
        posterior_weight="auto",
        early_stopping=False,
        validation_fraction=0.1,
        n_iter_no_change=10,
        tol=2e-2,
        crop="auto",
        latent_noise=0.0,
        warm_start=False,
        priors=None,
        class_weight=None,
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
        self.decoding = decoding
        self.on_bad_image = on_bad_image
        self.augmentation = augmentation
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate_init = learning_rate_init
        self.micro_batch_size = micro_batch_size
        self.checkpointing = checkpointing
        self.parallel = parallel
        self.finetune = finetune
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.finetune_dropout = finetune_dropout
        self.new_classes = new_classes
        self.weight_decay = weight_decay
        self.class_dropout = class_dropout
        self.posterior_weight = posterior_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.crop = crop
        self.latent_noise = latent_noise
        self.warm_start = warm_start
        self.priors = priors
        self.class_weight = class_weight
        self.memory = memory
        self.checkpoint_dir = checkpoint_dir
        self.n_jobs = n_jobs
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y, sample_weight=None):
        """Train tokenizer and prior.

        Parameters
        ----------
        X : array-like
            Images: arrays or tensors of shape (n_samples, height, width),
            (n_samples, height, width, channels) or (n_samples, channels, height, width), flat rows
            with `image_shape`, paths of image files, PIL images. Or tabular data of shape
            (n_samples, n_features). Or tokens, with ``tokenizer="precomputed"``. Arrays that are
            mapped from a file, files, and sequences of images such as a
            ``torch.utils.data.Dataset``, of images or of pairs (image, label), are read a few at a
            time, so that they may be larger than memory.
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
            If a parameter, X or y is not as described, or `checkpoint_dir` holds another fit; the
            message says which and why. If training diverges, also at lower learning rates: before,
            it goes back to the last good weights with a ConvergenceWarning.
        OSError
            If `checkpoint_dir` cannot be written to, or another fit is using it.

        Warns
        -----
        ConvergenceWarning
            If the loss still falls when training ends.
        """
        self._validate_params()
        with collective_call("fit", self._if_others_die(self.warm_start)):
            unused = without_effect(OF_SEARCH + OF_TRAINING, self.get_params(False), defaults())
            self._warn_of(unused)
            if self.warm_start and hasattr(self, "model_"):
                return self._extend(X, y, sample_weight, grow=False)
            return self._learn(X, y, sample_weight)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """Train on further images, of known classes or of new ones.

        The first call is a `fit`. Later ones keep the tokenizer and the orders, train for
        `max_iter` epochs on X alone, and move no class that is not in y, not by a bit: a new class
        gets a prior of its own, which starts from the first one and is trained as `finetune` says
        (with ``"class_embedding"`` and ``"head"`` only vectors in the first prior). Known classes
        that were learned together are trained together if all of them are in y, else only their
        vectors.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        y : array-like of shape (n_samples,)
            As in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All classes that are known to come. Unlike in other estimators they need not be given,
            and more may come later. A class without images yet has probability 0, unless `priors`
            says otherwise.
        sample_weight : array-like of shape (n_samples,), default=None
            As in `fit`.

        Returns
        -------
        self : AnyOrderARClassifier
            The classifier, trained further.

        Raises
        ------
        ValueError
            If y has labels that `classes` has not, or with ``temperature="auto"`` and
            ``class_weight="balanced"``, which need images of all classes at once.

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
        if self.class_weight == "balanced":
            raise ValueError(
                'class_weight="balanced" is not supported for partial_fit: it needs the counts of '
                "all classes at once. Pass a dict of weights, or sample_weight."
            )
        with collective_call("partial_fit", self._if_others_die(True)):
            if hasattr(self, "model_"):
                return self._extend(X, y, sample_weight, grow=True, classes=classes)
            return self._learn(X, y, sample_weight, classes)

    def predict_joint_log_proba(self, X, return_stats=False):
        """Log of the joint probability of image and class, orders marginalized.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        return_stats : bool, default=False
            Whether to return also what it took.

        Returns
        -------
        joint : float64 ndarray of shape (n_samples, n_classes)
            log P(x, y), in nats; columns follow `classes_`. With a `temperature`, the
            log-likelihood in it is divided by that.
        stats : dict
            Only if `return_stats`. ``"evaluations"``: int ndarray of shape (n_samples,), tokens
            that the transformer read, over all classes and orders;
            ``"exhaustive_evaluations"``: int, what ``search="exhaustive"`` takes for one sample.
        """
        joints, evaluations = [], []
        # whose log-likelihoods of each order are not kept
        for some in self._races(X, decides=True):
            joints.append(self._joint_log_proba(some.log_likelihood))
            evaluations.append(some.evaluations)
        joint = np.concatenate(joints)
        if not return_stats:
            return joint
        return joint, {
            "evaluations": np.concatenate(evaluations),
            "exhaustive_evaluations": self.orders_.size * self.model_.readings,
        }

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
        return self._log_posterior(self.predict_joint_log_proba(X))

    def predict_proba(self, X):
        """Class probabilities: the order-marginalized posterior.

        By default of as many orders as decide an image, which for most images are a few; of all
        orders with ``search="exhaustive"``.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        proba : float64 ndarray of shape (n_samples, n_classes)
            Rows sum to one; columns follow `classes_`. An image that is impossible under every
            class, as only weights out of all bounds have it, gets the class prior.
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
            Labels from `classes_`.
        """
        joint = where_possible(self.predict_joint_log_proba(X), self.class_log_prior_)
        return self.classes_[joint.argmax(axis=1)]

    def staged_predict_proba(self, X):
        """Class probabilities after 1, 2, ... `n_orders` orders, from one pass.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Yields
        ------
        proba : float64 ndarray of shape (n_samples, n_classes)
            Exactly those of a classifier with so many orders and ``search="exhaustive"``, unless
            `search` is ``"racing"``.
        """
        for joint in self._staged_joint_log_proba(X):
            yield np.exp(self._log_posterior(joint))

    def staged_predict(self, X):
        """The most probable class of each image after 1, 2, ... `n_orders` orders.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Yields
        ------
        y : ndarray of shape (n_samples,)
            Labels from `classes_`.
        """
        for joint in self._staged_joint_log_proba(X):
            yield self.classes_[where_possible(joint, self.class_log_prior_).argmax(axis=1)]

    def staged_score(self, X, y, sample_weight=None):
        """Accuracy after 1, 2, ... `n_orders` orders.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        y : array-like of shape (n_samples,)
            True labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the accuracy.

        Yields
        ------
        score : float
            Accuracy, from 0 to 1.
        """
        for predicted in self.staged_predict(X):
            yield accuracy_score(y, predicted, sample_weight=sample_weight)

    def transform(self, X):
        """Log-likelihood of each class, for what comes next in a pipeline.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        log_likelihood : float64 ndarray of shape (n_samples, n_classes)
            log p(x | y) with the orders aggregated, in nats: what
            :meth:`predict_joint_log_proba` would be without class priors and temperature.
        """
        nothing = np.zeros(len(self._fitted().classes))
        return self._aggregated(X, nothing)

    def score_samples(self, X):
        """Log-likelihood of each image, over classes and orders: log p(tokens).

        Low values are images unlike those of `fit`, whatever their class. It is the log of the sum
        over the classes of what :meth:`predict_joint_log_proba` returns without a temperature, so
        `aggregation` and the class priors have their say.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        log_likelihood : float64 ndarray of shape (n_samples,)
            In nats, summed over the tokens.
        """
        check_is_fitted(self)
        joint = self._aggregated(X, self.class_log_prior_)
        return torch.from_numpy(joint).logsumexp(1).numpy()

    def explain(self, X, y=None, rival=None):
        """Which parts of an image speak for a class.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        y : array-like of shape (n_samples,), default=None
            Class to explain for each image; None explains the predicted ones.
        rival : "runner-up", array-like of shape (n_samples,) or None, default=None
            What to weigh it against: the most probable of the other classes, given classes, or
            None, no class at all: log p(token | class) - log p(token).

        Returns
        -------
        evidence : Evidence
            Nats for each token and pixel, averaged over the orders, and standard errors; see
            :class:`skaocls.scoring.evidence.Evidence`. Where orders read views (`crop`), a token's
            place is that in the view, a sixteenth of the image aside at most.

        Raises
        ------
        ValueError
            If `y` or `rival` has classes that `fit` has not seen, or another length than X.
        """
        model, runner_up = self._fitted(), isinstance(rival, str) and rival == "runner-up"
        self._validate_params()
        if not (rival is None or runner_up or np.ndim(rival) == 1):
            raise ValueError(
                f'rival must be "runner-up", one class for each image, or None; got {rival!r}.'
            )
        X = gathered(X)  # it is gone through twice
        batch = model.reader.open(X)
        own = None if y is None else model.columns(y)
        rivals = None if rival is None or runner_up else model.columns(rival, "rival")
        check_consistent_length(batch.data, own, rivals)
        if own is None or runner_up:
            joint = self.predict_joint_log_proba(X)
            own = joint.argmax(1) if own is None else own
            joint[np.arange(len(own)), own] = -np.inf
            rivals = joint.argmax(1) if runner_up else rivals
        return prediction.explain(model, batch, own, rivals, self.orders_, **self._reading())

    def sample(
        self,
        n_samples=None,
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
        n_samples : int, default=None
            Number of images. None is as many as `y` has labels, else one.
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
            Logits are those without a class plus `guidance` times what the class adds: above 1,
            images are more typical of their class, at 0 of none; other than 1 takes twice the
            work. See :func:`skaocls.scoring.sampling.generate`.
        random_state : int, RandomState instance or None, default=None
            Governs classes, orders and tokens. Pass an int for the same images each time.

        Returns
        -------
        images : float array of shape (n_samples, height, width[, channels])
            What the tokenizer's `inverse_transform` gives; for tabular data
            (n_samples, n_features), and tokens if X was tokens.

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
        model = self._fitted()
        self._validate_params()
        options = SamplingOptions(
            n_steps=n_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
        )
        validate_parameter_constraints(
            SAMPLING_CONSTRAINTS | N_SAMPLES, {"n_samples": n_samples, **options}, "sample"
        )
        rng = check_random_state(random_state)
        if n_samples is None:
            n_samples = len(y) if np.ndim(y) else 1
        if y is None:
            p = np.exp(self.class_log_prior_)
            columns = rng.choice(len(p), n_samples, p=p / p.sum())
        else:
            columns = self._columns_for(y, n_samples)
        orders = generation.generation_orders(model, self.order, self.n_orders, n_samples, rng)
        return generation.generate_images(model, columns, orders, rng, options, device=self.device)

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
            (n_samples, n_features), for tokens (rows, cols) or (n_samples, rows, cols).
        y : label or array-like of shape (n_samples,), default=None
            Class of all images or of each. None takes for each image the most probable class given
            its known tokens.
        n_steps : int, default=None
            As in :meth:`sample`, of the masked tokens.
        temperature : float, default=1.0
            As in :meth:`sample`.
        top_k : int, default=None
            As in :meth:`sample`.
        top_p : float, default=None
            As in :meth:`sample`.
        guidance : float, default=1.0
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
        model = self._fitted()
        self._validate_params()
        options = SamplingOptions(
            n_steps=n_steps,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            guidance=guidance,
        )
        validate_parameter_constraints(SAMPLING_CONSTRAINTS, options, "inpaint")
        batch = model.reader.open(X, scale=False)
        return generation.inpaint_images(
            model,
            batch,
            mask,
            None if y is None else self._columns_for(y, len(batch)),
            self.order,
            self.n_orders,
            self._joint_log_proba,
            check_random_state(random_state),
            options,
            device=self.device,
            precision=self.precision,
        )

    @classmethod
    def from_pretrained(
        cls,
        source,
        *,
        filename=None,
        revision=None,
        token=None,
        tokenizer="auto",
        classes=None,
        grid=None,
        n_head=None,
        num_classes=None,
        **params,
    ):
        """A fitted classifier from published weights or from what `save_pretrained` wrote.

        Published ImageNet weights classify at once, without `fit`: `classes_` are ImageNet's
        indices, `class_names_` and `wordnet_ids_` say what they are, class priors are uniform,
        and files are resized and cropped as in the paper; ``decoding="plain"`` also takes their
        pixels as in the paper where files are odd (turned, transparent, of 16 bits).

        Parameters
        ----------
        source : str, path or module
            A folder or hub repository written by `save_pretrained` or `push_to_hub`; published
            weights or one's own of that architecture, see
            :func:`skaocls.fitted.pretrained.load_published`; or a prior, which is copied.
        filename : str, default=None
            File of published weights within a folder or repository.
        revision : str, default=None
            Branch, tag or commit of a repository.
        token : str or bool, default=None
            As in ``huggingface_hub``.
        tokenizer : "auto", "precomputed" or transformer, default="auto"
            For published weights and priors; ``"auto"`` is the one of their vocabulary, with its
            own published weights. ``"precomputed"`` reads tokens (see the class), of what
            `save_pretrained` wrote too, and needs no tokenizer. A transformer is taken as it is if
            it is fitted, else cloned and fitted.
        classes : list of int or str, default=None
            Only these classes, for published weights: ImageNet indices, WordNet ids or names.
            What is left out costs nothing.
        grid : tuple of int (rows, cols), default=None
            For published weights: how tokens are arranged. None is the grid of `tokenizer`; with
            ``"auto"`` that of `image_shape`, 24 x 24 for (384, 384), or else 16 x 16.
        n_head : int, default=None
            For published weights: how many attention heads they have. None is ``dim / 64``.
        num_classes : int, default=None
            For published weights, how many classes their class table has. Its last row may be the
            null class or, if training dropped no class, a class like the others; None guesses and,
            where it may be wrong, warns (:func:`skaocls.priors.loading.prior_from_state_dict`).
            If this, `grid` or `n_head` is given, the parameter `prior` becomes the loaded module,
            so that a later `fit` starts from the same.
        **params
            Other parameters of the classifier.

        Returns
        -------
        clf : AnyOrderARClassifier
            Fitted.

        Raises
        ------
        OSError
            If something cannot be found or fetched.
        ValueError
            If something is not what it should be.

        References
        ----------
        Sudakov, Babenko, Baranchuk, arXiv 2603.19122, section 4.

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
        at = {"revision": revision, "token": token}
        if filename is None and not is_published(source) and not isinstance(source, Prior):
            config = saving.read_config(source, **at)
            if config is not None:
                if "params" not in config:
                    raise ValueError(
                        f"{source!s} holds a model that was saved without a classifier's "
                        "parameters. Load it with skaocls.fitted.saving.load."
                    )
                model = saving.load(config, source, **at)
                saved, about = saving.about_from_json(config, source, defaults(), ABOUT)
                if isinstance(tokenizer, str) and tokenizer == "precomputed":
                    model = reading_tokens(model)
                    params["tokenizer"] = tokenizer
                clf = cls(**(saved | params))
                if "decoding" in params:
                    clf._validate_params()
                    model = replace(model, reader=replace(model.reader, decoding=clf.decoding))
                return clf._put_in_place(model, **about)
        clf = cls(prior=source, tokenizer=tokenizer, filename=filename, revision=revision, **params)
        clf._validate_params()
        tokenizer = ready_tokenizer(tokenizer)
        sizes = {"grid": grid, "n_head": n_head, "num_classes": num_classes}
        told = any(size is not None for size in sizes.values())
        if isinstance(source, Prior):
            if told or filename is not None:
                raise ValueError(
                    f"filename, grid, n_head and num_classes are for files, but source is a "
                    f"{type(source).__name__}, which knows its own."
                )
            prior = copy.deepcopy(source).eval()
        else:
            sizes["grid"] = grid or grid_for(tokenizer, clf.image_shape)
            prior = load_published(source, filename, **at, **sizes)
        if told:
            clf.prior = prior
        rng = check_random_state(clf.random_state)
        how = {"image_shape": clf.image_shape, "decoding": clf.decoding}
        model = published_model(prior, tokenizer, classes, rng, cls.__name__, **how)
        log_prior = class_log_prior(clf.priors, model.class_count)
        return clf._put_in_place(model, class_log_prior_=log_prior)

    def save_pretrained(self, folder):
        """Write the fitted classifier as JSON and safetensors; see :mod:`skaocls.fitted.saving`.

        A prior module given as parameter is stored as its sizes; a RandomState, `memory` and
        `checkpoint_dir` as None.

        Parameters
        ----------
        folder : path
            Made if need be.

        Raises
        ------
        TypeError
            If the tokenizer is none of this library's.
        """
        saving.save(self._fitted(), folder, self._about())

    def push_to_hub(
        self, repo_id, *, metrics=None, private=False, token=None, commit_message="Add classifier"
    ):
        """Upload the fitted classifier with a model card to the Hugging Face hub.

        Parameters
        ----------
        repo_id : str
            ``owner/name``, made if need be.
        metrics : dict of str to float, default=None
            Shown in the card, e.g. ``{"test accuracy": clf.score(X_test, y_test)}``.
        private : bool, default=False
            Of a repository that is made.
        token : str or bool, default=None
            As in ``huggingface_hub``.
        commit_message : str, default="Add classifier"
            Of the commit on the hub.

        Returns
        -------
        url : str
            Of the commit.
        """
        how = {"private": private, "token": token, "commit_message": commit_message}
        return saving.push(self._fitted(), repo_id, self._about(), metrics or {}, **how)

    @property
    def orders_(self):
        """Orders that predictions average over, (at most n_orders, n_tokens)."""
        if not hasattr(self, "model_"):
            raise NotFittedError("orders_ is known after fit: they are drawn there.")
        return self.model_.orders(self.order, self.n_orders)

    @property
    def class_prior_(self):
        """Probability of each class."""
        check_is_fitted(self)
        return np.exp(self.class_log_prior_)

    @property
    def temperature_(self):
        """What log-likelihoods are divided by."""
        check_is_fitted(self)
        if self.temperature != "auto":
            return float(self.temperature)
        if self._fitted_temperature is None:
            raise NotFittedError(
                'temperature="auto" is found in fit, on held-out data. Call fit with it, or pass a '
                "number."
            )
        return self._fitted_temperature

    def _readable(self, X, y, sample_weight, decoding):
        """The data without images that cannot be read, if that is asked for, and their indices."""
        if self.on_bad_image == "raise" or y is None:
            return X, y, sample_weight, []
        X = gathered(X)
        bad = find_unreadable(X, decoding)
        if not bad:
            return X, y, sample_weight, []
        if np.ndim(sample_weight) == 0:  # None, or one weight for all
            check_consistent_length(X, y)
            weights = sample_weight
        else:
            check_consistent_length(X, y, sample_weight)
            weights = np.delete(np.asarray(sample_weight), list(bad))
        kept = np.delete(np.arange(len(X)), list(bad))
        if not len(kept):
            raise ValueError(f"None of the {len(bad)} images can be read: {bad[0]}")
        self._warn_of([f"{len(bad)} images are left out: {shortened(list(bad.values()))}"])
        return _safe_indexing(X, kept), np.asarray(y)[kept], weights, list(bad)

    def _learn(self, X, y, sample_weight, classes=None):
        """Learn everything anew."""
        X, y, sample_weight, skipped = self._readable(X, y, sample_weight, self.decoding)
        owner, seed = type(self).__name__, self._seed()
        given, tokenizer, shape = resolve_prior(
            self.prior, self.tokenizer, self.image_shape, self.filename, self.revision
        )
        if isinstance(getattr(tokenizer, "estimator", tokenizer), PrecomputedTokenizer):
            batch = learn_tokens(X, owner)
        else:
            batch = learn_reader(X, owner, shape, decoding=self.decoding)
        some, y, weights = read_labels(batch, y, sample_weight, self.class_weight, owner=owner)
        classes = known_classes(y, classes)
        self._check_priors(classes)
        with all_bad_named(batch.data, batch.reader.decoding):
            learned = fit_model(
                some,
                y,
                weights,
                classes,
                self._recipe(),
                seed,
                tokenizer=tokenizer,
                given=given,
                store=open_cache(self.memory),
                checkpoint_dir=self.checkpoint_dir,
                seeded=self.random_state is not None,
            )
        return self._accept(learned, some, skipped)

    def _extend(self, X, y, sample_weight, grow, classes=None):
        """Train what was learned on further images."""
        model, rng = self.model_, np.random.RandomState(self._seed())
        decoding = model.reader.decoding
        X, y, sample_weight, skipped = self._readable(X, y, sample_weight, decoding)
        batch = model.reader.open(X)
        owner = type(self).__name__
        some, y, weights = read_labels(batch, y, sample_weight, self.class_weight, owner=owner)
        if grow:
            model = model.with_classes(known_classes(y, classes))
        self._check_priors(model.classes)
        with all_bad_named(batch.data, model.reader.decoding):
            learned = extend_model(model, some, y, weights, self._recipe(), rng, grow=grow)
        return self._accept(learned, some, skipped)

    def _check_priors(self, classes):
        """Refuse wrong class probabilities before training, not after it."""
        class_log_prior(self.priors, np.ones(len(classes)))

    def _accept(self, learned, batch, skipped):
        """Take over what was learned, tell how it went, and warn where training was too short."""
        model, histories, held_out, checkpoints = learned
        log_prior = class_log_prior(self.priors, model.class_count)
        scores = [score for history in histories for score in history.validation_curve]
        about = {
            "class_log_prior_": log_prior,
            "skipped_images_": skipped,
            "loss_curve_": [loss for history in histories for loss in history.loss_curve],
            "validation_scores_": scores if self.early_stopping else None,
            "n_iter_": max(history.n_iter for history in histories),
            "best_iter_": max(history.best_iter for history in histories),
            "choices_": choices(model, histories[0]),
        }
        if self.temperature == "auto":
            rows, columns, weights = held_out
            some = batch.take(rows)
            orders, store = model.orders(self.order, self.n_orders), open_cache(self.memory)
            read = prediction.score_batches(model, some, orders, cache=store, **self._reading())
            ll = np.concatenate([race.log_likelihood for race in read])
            about["_fitted_temperature"] = broadcast(
                fit_temperature(ll, columns, log_prior, self.aggregation, weights)
            )
        # the length of training on a table is chosen so that it is not overfitted
        of_our_own = isinstance(self.max_iter, str) and model.reader.tabular
        if not of_our_own and not all(h.converged or h.interrupted for h in histories):
            warn(
                f"Stochastic Optimizer: Maximum iterations ({about['n_iter_']}) reached and the "
                "optimization hasn't converged yet. Consider increasing max_iter.",
                ConvergenceWarning,
            )
        self._put_in_place(model, **about)
        if checkpoints is not None:
            checkpoints.clear()
        return self

    def _put_in_place(self, model, **about):
        """The one step in which the classifier becomes another one."""
        self.__dict__.update({"model_": model, "_fitted_temperature": None} | about)
        return self

    def _seed(self):
        """An int that stands for `random_state`, of which it takes one number."""
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        return broadcast(check_random_state(self.random_state).randint(2**31 - 1))

    def _if_others_die(self, goes_on):
        """What to do where another process has died in training, which perhaps goes on from one."""
        if goes_on and hasattr(self, "model_"):
            return "The classifier is what it was before the call. "
        if self.checkpoint_dir is None:
            return "What it had learned is lost; with checkpoint_dir the next start goes on. "
        return (
            "Start the same command again: fit goes on from the last checkpoint in "
            f"checkpoint_dir={os.fspath(self.checkpoint_dir)!r}. "
        )

    def _recipe(self):
        params = {
            f.name: getattr(self, f.name) for f in fields(TrainingConfig) if hasattr(self, f.name)
        }
        return TrainingConfig(
            **params,
            **new_prior_sizes(self.prior),
            keep_classes=isinstance(self.prior, Prior),
            hold_out=self.temperature == "auto",
        )

    def _fitted(self):
        check_is_fitted(self)
        shape, declared = check_image_shape(self.image_shape), self.model_.reader.declared_shape
        if shape is not None and shape != (declared or ())[: len(shape)]:
            message = f"image_shape={shape} was set after fit, which had {declared}: it has no "
            self._warn_of([message + "effect before fit is called again."])
        return self.model_

    def _warn_of(self, messages):
        for message in messages:
            warn(message)

    def _reading(self):
        """How images are read and scored."""
        names = ("crop", "device", "precision", "n_jobs")
        return {name: getattr(self, name) for name in names}

    def _ends(self, decides):
        """What ends the reading of an image early, if anything; `decides`: a class is asked for."""
        racing = self.search == "racing"
        shared = len(self.model_.priors) == 1 and isinstance(self.prior_, SharedTrunkPrior)
        by_mean = self.aggregation == defaults()["aggregation"]
        stops = decides and shared and by_mean and self.memory is None
        if not (racing or (self.search == "auto" and stops)):
            return None
        # what the class priors weigh beside likelihoods
        weigh = {"class_log_prior": self.temperature_ * self.class_log_prior_}
        if racing:
            return partial(race, **weigh, error=self.racing_error, screen=self.racing_screen)
        return partial(stop_early, **weigh, error=self.racing_error)

    def _races(self, X, decides=False):
        """Yield log-likelihoods and what they took, a few images at a time."""
        with collective_call("A prediction"):
            model = self._fitted()
            self._validate_params()
            self._warn_of(without_effect(OF_SEARCH, self.get_params(False), defaults()))
        batch, store = model.reader.open(X), open_cache(self.memory)
        options = {"stopping": self._ends(decides), "cache": store, "verbose": self.verbose}
        return prediction.score_batches(model, batch, self.orders_, **self._reading(), **options)

    def _log_likelihoods(self, X):
        """Yield log p(tokens | class, order), (n, n_orders, n_classes), a few images at a time."""
        return (some.log_likelihood for some in self._races(X))

    def _aggregated(self, X, log_prior):
        parts = self._log_likelihoods(X)
        return np.concatenate([joint_log_proba(ll, log_prior, self.aggregation) for ll in parts])

    def _joint_log_proba(self, log_likelihood):
        tempered = log_likelihood / self.temperature_
        return joint_log_proba(tempered, self.class_log_prior_, self.aggregation)

    def _log_posterior(self, joint):
        possible = torch.from_numpy(where_possible(joint, self.class_log_prior_))
        return possible.log_softmax(1).numpy()

    def _staged_joint_log_proba(self, X):
        ll = np.concatenate(list(self._log_likelihoods(X)))
        for k in range(1, ll.shape[1] + 1):
            yield self._joint_log_proba(ll[:, :k])

    def _columns_for(self, y, n):
        """Columns of n labels, or of one label for all."""
        columns = self.model_.columns(np.ravel(y) if np.ndim(y) == 0 else y)
        if np.ndim(y) and len(columns) != n:
            raise ValueError(
                f"y has {len(columns)} labels, but {n} are expected: one for each image, or a "
                "single one for all."
            )
        return np.broadcast_to(columns, n)

    def _about(self):
        """What is saved beside the model."""
        params = self.get_params(deep=False)
        params |= {"memory": None, "checkpoint_dir": None}  # folders of this machine
        history = {name: getattr(self, name) for name in ABOUT if hasattr(self, name)}
        return {"params": params, "history": history}

    def get_feature_names_out(self, input_features=None):
        """Names of what :meth:`transform` gives.

        Parameters
        ----------
        input_features : object
            Ignored.

        Returns
        -------
        names : ndarray of str objects of shape (n_classes,)
            The estimator's name and the class, such as ``"anyorderarclassifier_cat"``.
        """
        check_is_fitted(self)
        owner = type(self).__name__.lower()
        return np.array([f"{owner}_{label}" for label in self.classes_], dtype=object)

    def set_params(self, **params):
        """Set parameters, also those of a given tokenizer: ``tokenizer__n_codes``.

        Parameters
        ----------
        **params : dict
            Names and values.

        Returns
        -------
        self : AnyOrderARClassifier
            This classifier.
        """
        for name in params:
            whose, nested, _ = name.partition("__")
            value = params.get(whose, getattr(self, whose, None))
            if nested and isinstance(value, (str, dict)):
                instead = {
                    "tokenizer": "tokenizer=PatchTokenizer() for images, or QuantileTokenizer() "
                    "for tables, beside it",
                    "prior": 'sizes of a new prior as a dict, prior={"dim": 64}',
                }.get(whose, f"{whose} as an estimator")
                raise ValueError(
                    f"{name} sets a parameter of {whose}, but {whose}={value!r} has none. Pass "
                    f"{instead}."
                )
        return super().set_params(**params)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags


def choices(model, history):
    """What parameters became: those of training, and sizes of the prior and the tokenizer."""
    tokenizer = model.tokenizer
    names = tokenizer.get_params(deep=False) if hasattr(tokenizer, "get_params") else ()
    learned = {k: getattr(tokenizer, f"{k}_") for k in names if hasattr(tokenizer, f"{k}_")}
    learned = {k: v for k, v in learned.items() if isinstance(v, (int, str, tuple, type(None)))}
    return history.settings | {"prior": model.prior.sizes, "tokenizer": learned}


def defaults():
    """The classifier's default parameters."""
    parameters = inspect.signature(AnyOrderARClassifier.__init__).parameters.values()
    return {p.name: p.default for p in parameters}
