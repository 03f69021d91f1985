"""Fit a model, or continue the training of a fitted model on additional images."""

import copy
import math
import os
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator

from skaocls.devices import own_torch_state, resolve_device
from skaocls.distributed import check_same_on_ranks, is_main, run_on_main, world_size
from skaocls.fitted.class_statistics import learn_statistics, merge_statistics
from skaocls.fitted.initial_prior import initial_prior, start_finetuning
from skaocls.fitted.model import FittedModel
from skaocls.fitted.place_evidence import place_evidence
from skaocls.fitted.prediction import ScoringOptions
from skaocls.fitted.pretrained import check_match
from skaocls.fitted.result_cache import ResultCache, prior_weights
from skaocls.fitted.tokenization import (
    announce_patches,
    fit_tokenizer,
    has_views,
    tokenizer_identity,
    training_tokens,
)
from skaocls.hashing import HashError, hash_object
from skaocls.images.batch import Batch
from skaocls.images.lazy import first_views, in_memory, rows_of
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.priors.transformer import Prior
from skaocls.progress import say
from skaocls.scoring.orders import check_orders, resolve_orders
from skaocls.training.checkpoints import Checkpoints, check_checkpoint_dir, checkpoints_in
from skaocls.training.config import TrainingConfig
from skaocls.training.finetuning import merge_finetuning, prepare_finetuning, set_classes
from skaocls.training.loop import train_prior
from skaocls.training.state import History
from skaocls.training.validation import Validation, held_out_size, split_validation
from skaocls.version import __version__
from skaocls.warn import hold_errors, warn


class HeldOut(NamedTuple):
    """Rows, class columns and weights of the samples that were held out from training."""

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray


class FitResult(NamedTuple):
    """A model, and information about its training."""

    model: FittedModel
    histories: list[History]  # one history for each prior that was trained
    place_evidence: np.ndarray  # see fitted/place_evidence.py
    held_out: HeldOut | None = None
    checkpoints: Checkpoints | None = None  # to be cleared after the caller has stored the result


class Samples(NamedTuple):
    """Training samples. `codes` may be a :class:`skaocls.images.lazy.Lazy` array."""

    codes: np.ndarray  # shape (n, n_views, n_tokens)
    labels: np.ndarray  # shape (n,)
    weights: np.ndarray  # shape (n,)

    def take(self, rows: np.ndarray) -> "Samples":
        return Samples(rows_of(self.codes, rows), self.labels[rows], self.weights[rows])


class Training(NamedTuple):
    """Result of a training, in the form that the cache stores."""

    model_fields: dict[str, Any]
    history: History
    place_evidence: np.ndarray
    held_out: HeldOut | None

    def is_complete(self) -> bool:
        """Return whether the training ran to its end. Only complete trainings are cached."""
        return not self.history.interrupted


@own_torch_state(grad=True)
def fit_model(
    batch: Batch,
    y: np.ndarray,
    weights: np.ndarray,
    classes: np.ndarray,
    config: TrainingConfig,
    seed: int,
    *,
    tokenizer: str | BaseEstimator = "auto",
    pretrained: Prior | None = None,
    cache: ResultCache | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    seeded: bool = True,
) -> FitResult:
    """Fit a model. `classes` is sorted, has the dtype of y, and may have classes that are not in y.

    Parameters
    ----------
    tokenizer : "auto" or transformer, default="auto"
        Tokenizer to clone and fit. A ``FrozenEstimator`` is used without changes.
    pretrained : Prior, default=None
        Prior to fine-tune in place. If None, a new prior is trained.
    cache : ResultCache, default=None
        Cache of results. If the cache contains a result for the same inputs, `fit_model` returns
        this result. Otherwise it stores the new result, unless the training was interrupted.
    checkpoint_dir : path, default=None
        Folder for checkpoints. With checkpoints, an interrupted training can continue later.
    seeded : bool, default=True
        Whether the user has set the seed. If False, cached results of any seed may be returned.
    """
    check_checkpoint_dir(checkpoint_dir)
    columns, reader = np.searchsorted(classes, y), batch.reader
    config = config_for(config, batch, y, weights)
    held_out_size(columns, config)
    fingerprint: dict[str, str] = {}
    if cache is not None or checkpoint_dir is not None:
        inputs = config.identity() | {
            "tokenizer": tokenizer_identity(tokenizer),
            "prior": None if pretrained is None else prior_weights(pretrained),
            "random_state": seed if seeded else None,
            "X": batch.content_hash(),
            "y": columns,
            "sample_weight": weights,
            "classes": classes,
            "version of skaocls": __version__,
        }
        try:
            fingerprint = {name: hash_object(value) for name, value in inputs.items()}
        except HashError as exc:
            cache = checkpoint_dir = None
            warn(
                "fit uses neither memory nor checkpoint_dir, because it could not recognize the "
                f"tokenizer or the prior in a later call: {exc}."
            )
    with checkpoints_in(checkpoint_dir, fingerprint, seed) as checkpoints:
        train = partial(
            train_new_model, batch, columns, weights, classes, config, tokenizer, pretrained,
            seed if checkpoints is None else checkpoints.seed, checkpoints,
        )  # fmt: skip
        if cache is None:
            training = train()
        else:
            key = hash_object("fit", fingerprint)
            training = cache.get_or_compute(key, train, keep=Training.is_complete)
    count = np.bincount(columns, weights, minlength=len(classes))
    model = FittedModel(reader=reader, classes=classes, class_count=count, **training.model_fields)
    completed = checkpoints if training.is_complete() else None
    evidence = training.place_evidence
    return FitResult(model, [training.history], evidence, training.held_out, completed)


def train_new_model(
    batch: Batch,
    columns: np.ndarray,
    weights: np.ndarray,
    classes: np.ndarray,
    config: TrainingConfig,
    tokenizer: str | BaseEstimator,
    pretrained: Prior | None,
    seed: int,
    checkpoints: Checkpoints | None,
) -> Training:
    """Fit the tokenizer, tokenize the images, and train the prior."""
    if checkpoints is not None and checkpoints.found is not None:
        epoch, folder = checkpoints.found[1]["history"]["n_iter"] + 1, str(checkpoints.folder)
        say(config.verbose, f"resuming from epoch {epoch} with the checkpoint in {folder!r}")
    rng, device = np.random.RandomState(seed), resolve_device(config.device)
    say(config.verbose, f"computing on {device} (device={config.device!r})", 2)
    announce_patches(tokenizer, batch, config.augmentation)
    tokenizer = fit_tokenizer(tokenizer, batch, classes[columns], rng, config.verbose)
    if pretrained is not None:
        check_match(pretrained, tokenizer)
    if not config.draws_orders:
        resolve_orders(config.order, config.n_orders, math.prod(tokenizer.grid_), seed)
    codes = training_tokens(tokenizer, batch, config.augmentation, rng, config.verbose)
    seen, labels = np.unique(columns, return_inverse=True)
    prior = initial_prior(pretrained, tokenizer, codes, labels, len(seen), config, rng)
    order_seed = rng.randint(2**31 - 1)
    mode = None if pretrained is None else config.finetune.mode
    statistics = run_on_main(
        partial(learn_statistics, tokenizer, batch, columns, weights, len(classes), order_seed)
    )
    samples = Samples(codes, labels, weights)
    history, rest = train_classes(prior, samples, config, mode, order_seed, rng, checkpoints)
    # classes without images use the row of the null class
    rows = np.full(len(classes), prior.num_classes)
    rows[seen] = np.arange(len(seen))
    model_fields = {
        "tokenizer": tokenizer,
        "priors": (prior,),
        "rows": rows,
        "sources": np.zeros(len(classes), dtype=int),
        "order_seed": order_seed,
        "views": has_views(tokenizer, batch.reader, config.augmentation),
        "statistics": statistics,
    }
    held_out = None if rest is None else HeldOut(rest, columns[rest], weights[rest])
    count = np.ones(len(classes))
    model = FittedModel(reader=batch.reader, classes=classes, class_count=count, **model_fields)
    evidence = place_evidence(model, codes, columns, scoring_options(config))
    return Training(model_fields, history, evidence, held_out)


@own_torch_state(grad=True)
def extend_model(
    model: FittedModel,
    batch: Batch,
    y: np.ndarray,
    weights: np.ndarray,
    config: TrainingConfig,
    rng: np.random.RandomState,
) -> FitResult:
    """Train a model on additional images, and return a new model.

    Known classes: for each prior, the images of its classes are used together. If y contains all
    classes of the prior, all of its weights are trained. Otherwise, only the vectors of the classes
    in y are trained. The log-likelihoods of classes that are not in y do not change.

    New classes: with ``finetune="class_embedding"`` or ``"head"``, new classes get vectors in the
    first prior. With other modes, a copy of the first prior is fine-tuned on the new classes.

    After Ctrl-C, no model is returned, because only some classes would be trained. The function
    raises KeyboardInterrupt instead.
    """
    config = config_for(config, batch, y, weights)
    model.orders(config.order, config.n_orders)
    columns = model.columns(y, len(y))
    priors, rows, sources = list(model.priors), model.rows.copy(), model.sources.copy()
    is_new = (sources == 0) & (rows == model.prior.num_classes)
    groups = [
        np.flatnonzero(~is_new[columns] & (sources[columns] == source))
        for source in range(len(priors))
    ]
    new = np.flatnonzero(is_new[columns])
    for group in (*groups, new):
        if len(group):
            held_out_size(columns[group], config)
    codes = training_tokens(model.tokenizer, batch, config.augmentation, rng, config.verbose)
    samples, order_seed = Samples(codes, rows[columns], weights), model.order_seed
    histories = []
    for source, (prior, known) in enumerate(zip(model.priors, groups, strict=True)):
        if len(known):
            trained = train_known_classes(prior, samples.take(known), config, order_seed, rng)
            priors[source] = trained[0]
            histories.append(trained[1])
    if len(new):
        added, labels = np.unique(columns[new], return_inverse=True)
        new_samples = samples.take(new)._replace(labels=labels)
        prior, history = train_new_classes(priors[0], new_samples, config, order_seed, rng)
        histories.append(history)
        joins_first = config.finetune.mode in ("class_embedding", "head")
        priors = [prior, *priors[1:]] if joins_first else [*priors, prior]
        rows[is_new] = priors[0].num_classes
        rows[added] = prior.num_classes - len(added) + np.arange(len(added))
        sources[added] = 0 if joins_first else len(priors) - 1
    count = np.bincount(columns, weights, minlength=len(model.classes))
    seed = rng.randint(2**31 - 1)
    statistics = run_on_main(
        partial(learn_statistics, model.tokenizer, batch, columns, weights, len(rows), seed)
    )
    extended = replace(
        model,
        priors=tuple(priors),
        rows=rows,
        sources=sources,
        class_count=model.class_count + count,
        statistics=merge_statistics(model.statistics, statistics, model.class_count, count, seed),
    )
    evidence = place_evidence(extended, codes, columns, scoring_options(config))
    return FitResult(extended, histories, evidence)


def train_known_classes(
    prior: Prior,
    samples: Samples,
    config: TrainingConfig,
    order_seed: int,
    rng: np.random.RandomState,
) -> tuple[Prior, History]:
    """Train a copy of a prior on additional images of known classes, and return the copy."""
    mode = None
    if len(np.unique(samples.labels)) < prior.num_classes:
        mode = "class_embedding"
    elif config.finetune.mode == "head" and isinstance(prior, SharedTrunkPrior):
        mode = "head"
    prior = copy.deepcopy(prior).to(resolve_device(config.device))
    prepare_finetuning(prior, mode or "full")
    history, _ = train_classes(prior, samples, config, mode, order_seed, rng)
    if history.interrupted:
        raise KeyboardInterrupt
    return prior, history


def train_new_classes(
    prior: Prior,
    samples: Samples,
    config: TrainingConfig,
    order_seed: int,
    rng: np.random.RandomState,
) -> tuple[Prior, History]:
    """Train a copy of a prior on images of new classes, and return the copy.

    If only class vectors are trained, the copy has the old classes, followed by the new classes.
    Otherwise the copy has only the new classes.
    """
    finetune = config.finetune
    prior = copy.deepcopy(prior).to(resolve_device(config.device))
    keep_old = finetune.mode in ("class_embedding", "head")
    mode = "class_embedding" if keep_old else finetune.mode
    n_old, n_new = prior.num_classes if keep_old else 0, int(samples.labels.max()) + 1
    seed = rng.randint(2**31 - 1)
    codes = first_views(samples.codes)
    set_classes(prior, codes, samples.labels, n_new, finetune.new_classes, seed, keep_old=keep_old)
    start_finetuning(prior, finetune, mode, seed)
    samples = samples._replace(labels=n_old + samples.labels)
    history, _ = train_classes(prior, samples, config, mode, order_seed, rng)
    if history.interrupted:
        raise KeyboardInterrupt
    return prior, history


def train_classes(
    prior: Prior,
    samples: Samples,
    config: TrainingConfig,
    mode: str | None,
    order_seed: int,
    rng: np.random.RandomState,
    checkpoints: Checkpoints | None = None,
) -> tuple[History, np.ndarray | None]:
    """Train a prior in place, and return the history and the rows of the held-out samples.

    `mode` is the fine-tuning mode. If None, all weights are trained, with the learning rate for
    new priors.
    """
    hold_errors()
    train, held_out = split_validation(samples.labels, config, rng)
    validation = None
    if config.early_stopping and held_out is not None:
        codes = in_memory(first_views(samples.codes, held_out))
        validation = Validation(codes, samples.labels[held_out], samples.weights[held_out])
    codes, labels, weights = samples.take(train)
    n_views, seed = samples.codes.shape[1], rng.randint(2**31 - 1)
    resolved = config.resolve(prior, mode, len(train), n_views, order_seed, seed)
    settings: dict[str, int | float] = {
        name: getattr(resolved, name) for name in ("max_iter", "batch_size", "learning_rate_init")
    }
    parameters = ", ".join(
        f"{name}={value:.6g}" + (" (auto)" if getattr(config, name) == "auto" else "")
        for name, value in settings.items()
    )
    say(config.verbose, f"training on {len(train)} samples: {parameters}", 2)
    history = train_prior(
        prior,
        codes,
        labels,
        resolved,
        sample_weight=None if (weights == weights[0]).all() else weights / weights.mean(),
        validation=validation,
        checkpoints=checkpoints,
    )
    merge_finetuning(prior)
    history.settings = settings
    return history, held_out


def scoring_options(config: TrainingConfig) -> ScoringOptions:
    return ScoringOptions(device=config.device, precision=config.precision, per_token=True)


def config_for(
    config: TrainingConfig, batch: Batch, y: np.ndarray, weights: np.ndarray
) -> TrainingConfig:
    """Check the configuration, and adapt it to the data. Only `verbose` may differ among ranks."""
    resolve_device(config.device)
    if not isinstance(config.order, str):
        check_orders(config.order)
    if world_size() > 1:
        values = config.identity() | {"y": y, "sample_weight": weights}
        check_same_on_ranks({name: hash_object(value) for name, value in values.items()})
    verbose = config.verbose if is_main() else 0
    return replace(config, tabular=batch.reader.tabular, verbose=verbose)
