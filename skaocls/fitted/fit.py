"""Learning: from data and labels to a fitted model, and from one fitted model to the next."""

import copy
import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.model_selection import train_test_split

from skaocls.devices import own_torch_state, resolve_device, resolve_precision
from skaocls.distributed import check_same_on_ranks, is_main, world_size
from skaocls.fitted.config import TrainingConfig
from skaocls.fitted.initialization import initial_prior, prepare
from skaocls.fitted.lengths import EPOCHS, batch_of, epochs_of
from skaocls.fitted.model import FittedModel
from skaocls.fitted.result_cache import ResultCache, prior_weights
from skaocls.fitted.together import (
    fit_tokenizer_on_ranks,
    training_tokens_on_ranks,
)
from skaocls.fitted.tokenization import has_views
from skaocls.hashing import hash_object
from skaocls.images.batch import Batch
from skaocls.images.lazy import first_views, in_memory, rows_of
from skaocls.images.reader import Reader
from skaocls.priors.interface import Prior
from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.progress import say
from skaocls.scoring.orders import resolve_orders
from skaocls.training.checkpoints import Checkpoints, checkpoints_in
from skaocls.training.finetuning import merge_finetuning, prepare_finetuning, set_classes
from skaocls.training.loop import train_prior
from skaocls.training.posterior import rivals_of
from skaocls.training.state import History
from skaocls.version import __version__

RATE_TIMES_DIM = 0.4
EPOCHS_OF_ADAMW = 50  # from which AdamW alone does as well or better
# Of priors that read an image once for all classes; on tables, which are soon overfitted, for each
# token (benchmarks/posterior.py)
# As likelihoods of fewer tokens are fewer nats, the posterior would soon outweigh them
POSTERIOR_WEIGHT, FROM_TOKENS, OF_TABLES = 5.0, 48, 1 / 30
FINETUNE_RATE = {"full": 0.1, "lora": 0.5, "class_embedding": 5.0, "head": 1.0}


class HeldOut(NamedTuple):
    """What was not trained on: which of the data, their columns and weights."""

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray


class FitResult(NamedTuple):
    """A model and how it came about: a history of each training, and the data held out.

    `checkpoints` are those of a training that has come to its end, to be removed when they are
    needed no more.
    """

    model: FittedModel
    histories: list[History]
    held_out: HeldOut | None
    checkpoints: Checkpoints | None = None


class Interrupted(Exception):
    """Ctrl-C ended training: what `learn` has so far, not to be kept in a store."""


@own_torch_state(grad=True)
def fit_model(
    batch: Batch,
    y: np.ndarray,
    weights: np.ndarray,
    classes: np.ndarray,
    recipe: TrainingConfig,
    seed: int,
    *,
    tokenizer: Any = "auto",
    given: Prior | None = None,
    store: ResultCache | None = None,
    checkpoint_dir: Any = None,
    seeded: bool = True,
) -> FitResult:
    """Learn everything from data.

    Parameters
    ----------
    batch : Batch
        From :func:`skaocls.images.reader.learn_reader`.
    y, weights : arrays of shape (n,)
        From :func:`skaocls.fitted.labels.read_labels`.
    classes : array of shape (n_classes,)
        All labels, sorted; there may be more than in y.
    recipe : Recipe
    seed : int
        Governs everything random.
    tokenizer : "auto" or transformer
        Cloned and fitted, unless frozen.
    given : Prior, default=None
        A prior to fine-tune; it is changed.
    store : Store, default=None
        Where the outcome is kept, and found if it is there.
    checkpoint_dir : path, default=None
        Where training that is cut short finds itself again.
    seeded : bool, default=True
        Whether the seed was asked for; else what another seed has led to will do as well.

    Returns
    -------
    learned : Learned
    """
    columns, reader = np.searchsorted(classes, y), batch.reader
    recipe = prepared(recipe, reader, y, weights)
    depends: dict[str, Any] = {}
    if store is not None or checkpoint_dir is not None:
        depends = recipe.of_results() | {
            "tokenizer": tokenizer,
            "prior": None if given is None else prior_weights(given),
            "random_state": seed if seeded else None,
            "X": batch.content_hash(),
            "y": columns,
            "sample_weight": weights,
            "classes": classes,
        }
    opened: list[Checkpoints] = []

    def train() -> tuple[dict[str, Any], History, HeldOut | None]:
        about = {name: hash_object(value) for name, value in depends.items()}
        about["version of skaocls"] = __version__
        with checkpoints_in(checkpoint_dir, about, seed) as checkpoints:
            if checkpoints is None:
                return train_by(seed, None)
            opened.append(checkpoints)
            return train_by(checkpoints.seed, checkpoints)

    def train_by(
        seed: int, checkpoints: Checkpoints | None
    ) -> tuple[dict[str, Any], History, HeldOut | None]:
        rng = np.random.RandomState(seed)
        device, verbose = resolve_device(recipe.device), recipe.verbose
        say(verbose, f"computing on {device} (device={recipe.device!r})", 2)
        fitted = fit_tokenizer_on_ranks(tokenizer, batch, y, rng, verbose)
        codes = training_tokens_on_ranks(fitted, batch, recipe.augmentation, rng, verbose)
        seen, rows = np.unique(columns, return_inverse=True)
        prior = initial_prior(given, fitted, codes, rows, len(seen), recipe, rng)
        order_seed = rng.randint(2**31 - 1)
        split = split_validation(rows, recipe, rng)
        mode = None if given is None else recipe.finetune
        some = codes, rows, weights, split, recipe, mode, order_seed, rng
        history = train_classes(prior, *some, checkpoints)
        # classes that have no images yet are read as no class at all
        class_rows = np.full(len(classes), prior.num_classes)
        class_rows[seen] = np.arange(len(seen))
        parts = {
            "tokenizer": fitted,
            "priors": (prior,),
            "rows": class_rows,
            "sources": np.zeros(len(classes), dtype=int),
            "order_seed": order_seed,
            "views": has_views(fitted, reader, recipe.augmentation),
        }
        rest, held_out = split[1], None
        if rest is not None:
            held_out = HeldOut(rest, columns[rest], weights[rest])
        if history.interrupted:
            raise Interrupted(parts, history, held_out)
        return parts, history, held_out

    try:
        if store is None:
            parts, history, held_out = train()
        else:
            parts, history, held_out = store.get_or_compute(hash_object("fit", depends), train)
    except Interrupted as exc:
        parts, history, held_out = exc.args
        opened.clear()  # to go on from where it was
    count = np.bincount(columns, weights, minlength=len(classes))
    model = FittedModel(reader=reader, classes=classes, class_count=count, **parts)
    return FitResult(model, [history], held_out, *opened)


@own_torch_state(grad=True)
def extend_model(
    model: FittedModel,
    batch: Batch,
    y: np.ndarray,
    weights: np.ndarray,
    recipe: TrainingConfig,
    rng: np.random.RandomState,
    *,
    grow: bool,
) -> FitResult:
    """Train on further images; the model given stays as it is.

    With `grow`, classes of the model may be without a prior yet
    (:meth:`FittedModel.with_classes`), and counts add up. Classes that were learned together then
    go on together, all weights of their prior, if all of them are in y; else only the vectors of
    those that are, so that no other class is moved. Classes without a prior get vectors in the
    first one (``finetune="class_embedding"`` or ``"head"``), or a copy of it that is trained on
    them and reads them alone. Without `grow`, all classes go on together, and counts are those of
    y.

    Parameters
    ----------
    model : FittedModel
    batch, y, weights, recipe
        As in :func:`learn`.
    rng : RandomState
        Governs everything random.
    grow : bool

    Returns
    -------
    learned : Learned
    """
    if not np.isin(y, model.classes).all():
        raise ValueError(
            "warm_start can only be used where `self.classes_` is the same as in the previous "
            f"call to fit. Previously got {model.classes}, `y` has {np.unique(y)}."
        )
    device = resolve_device(recipe.device)
    recipe = prepared(recipe, model.reader, y, weights)
    columns = np.searchsorted(model.classes, y)
    count = np.bincount(columns, weights, minlength=len(model.classes))
    views = recipe.augmentation, rng, recipe.verbose
    codes = training_tokens_on_ranks(model.tokenizer, batch, *views)
    priors, rows, sources = list(model.priors), model.rows.copy(), model.sources.copy()
    new = (sources == 0) & (rows == priors[0].num_classes)
    histories: list[History] = []
    held_out: list[int] = []

    def train(prior: Prior, mine: np.ndarray, rows: np.ndarray, mode: str | None) -> Prior:
        split = split_validation(rows, recipe, rng)
        some = rows_of(codes, mine), rows, weights[mine], split, recipe, mode
        histories.append(train_classes(prior, *some, model.order_seed, rng))
        if grow and histories[-1].interrupted:  # others would be left behind
            raise KeyboardInterrupt
        held_out.extend([] if split[1] is None else mine[split[1]])
        return prior

    for source, prior in enumerate(model.priors):
        mine = np.flatnonzero(~new[columns] & (sources[columns] == source))
        if len(mine):
            of_mine = rows[columns[mine]]
            all_of_it = not grow or len(np.unique(of_mine)) == prior.num_classes
            copied = copy.deepcopy(prior).to(device)
            mode = None if all_of_it else "class_embedding"
            if all_of_it and recipe.finetune == "head" and isinstance(prior, SharedTrunkPrior):
                mode = "head"  # its body stays
            prepare_finetuning(copied, mode or "full")
            priors[source] = train(copied, mine, of_mine, mode)
            if histories[-1].interrupted:
                break
    mine = np.flatnonzero(new[columns])
    if len(mine):
        which, of_mine = np.unique(columns[mine], return_inverse=True)
        added = copy.deepcopy(priors[0]).to(device)
        keep = recipe.finetune in ("class_embedding", "head")
        mode = "class_embedding" if keep else recipe.finetune
        first = added.num_classes if keep else 0
        seed = rng.randint(2**31 - 1)
        some = first_views(codes, mine), of_mine, len(which)
        set_classes(added, *some, recipe.new_classes, seed, keep=keep)
        prepare(added, replace(recipe, finetune=mode), seed)
        train(added, mine, first + of_mine, mode)
        priors = [added, *priors[1:]] if keep else [*priors, added]
        rows[new] = priors[0].num_classes
        rows[which] = first + np.arange(len(which))
        sources[which] = 0 if keep else len(priors) - 1
    grown = replace(
        model,
        priors=tuple(priors),
        rows=rows,
        sources=sources,
        class_count=model.class_count + count if grow else count,
    )
    rest = np.array(held_out, dtype=int)
    return FitResult(grown, histories, HeldOut(rest, columns[rest], weights[rest]))


def prepared(
    recipe: TrainingConfig, reader: Reader, y: np.ndarray, weights: np.ndarray
) -> TrainingConfig:
    """The recipe for these data; of several processes all must be given the same, and one talks."""
    if world_size() > 1:
        params = {"parallel": recipe.parallel, **recipe.of_results()}
        data = {"y": hash_object(y), "sample_weight": hash_object(weights)}
        check_same_on_ranks(
            {**data, **{name: hash_object(value) for name, value in params.items()}}
        )
    return replace(recipe, tabular=reader.tabular, verbose=recipe.verbose if is_main() else 0)


def chosen(value: Any, why: str) -> str:
    """Why, if the value was left to us."""
    return why if isinstance(value, str) else ""


def split_validation(
    rows: np.ndarray, recipe: TrainingConfig, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray | None]:
    """Indices to train on, and held-out ones or None."""
    everything = np.arange(len(rows))
    if not (recipe.early_stopping or recipe.hold_out):
        return everything, None
    single = np.bincount(rows)[rows] == 1  # all that is known of their classes
    several = everything[~single]
    n_held_out = math.ceil(recipe.validation_fraction * len(rows))
    n_classes = len(np.unique(rows[several]))
    if not n_classes <= n_held_out <= len(several) - n_classes or not n_classes:
        why = "early_stopping" if recipe.early_stopping else 'temperature="auto"'
        raise ValueError(
            f"{why} holds out validation_fraction={recipe.validation_fraction} of {len(rows)} "
            f"samples, {n_held_out}. Of the {n_classes} classes with several samples each must "
            f"have one among them and one to train on: between {n_classes} and "
            f"{len(several) - n_classes} samples can be held out. Pass another "
            "validation_fraction, or more samples."
        )
    train, rest = train_test_split(
        several, test_size=n_held_out, stratify=rows[several], random_state=rng
    )
    return np.concatenate([train, everything[single]]), rest


def trained_by_muon(
    prior: Prior, n_views: int, tabular: bool, max_iter: int, mode: str | None
) -> bool:
    """Whether to train by Muon: new priors that have little time, and what goes on from them.

    Without several views of each image, and in many epochs, as on small digits, it overfits
    (``benchmarks/optimizers.py``). Of tables it can learn what AdamW does not in so few epochs
    (``benchmarks/tables.py``). Published weights came from AdamW.
    """
    ours = mode is None or (mode == "full" and isinstance(prior, SharedTrunkPrior))
    return ours and (n_views > 1 or tabular) and max_iter < EPOCHS_OF_ADAMW


def posterior_weight_of(prior: Prior, recipe: TrainingConfig, mode: str | None) -> float:
    """How much the posterior counts beside the likelihood.

    Published weights came from likelihood alone, and of a prior that reads an image once for each
    class the posterior costs as many readings.
    """
    if not isinstance(recipe.posterior_weight, str):
        return recipe.posterior_weight
    if mode not in (None, "full") or not isinstance(prior, SharedTrunkPrior):
        return 0.0
    if recipe.tabular:
        return min(POSTERIOR_WEIGHT, OF_TABLES * prior.n_tokens)
    return POSTERIOR_WEIGHT * min(1.0, prior.n_tokens / FROM_TOKENS)


def train_classes(
    prior: Prior,
    codes: np.ndarray,
    rows: np.ndarray,
    weights: np.ndarray,
    split: tuple[np.ndarray, np.ndarray | None],
    recipe: TrainingConfig,
    mode: str | None,
    order_seed: int,
    rng: np.random.RandomState,
    checkpoints: Checkpoints | None = None,
) -> History:
    """Train a prior in place; `mode` is what is fine-tuned, None for all at the full rate."""
    (train, rest), rate = split, recipe.learning_rate_init
    if isinstance(rate, str):
        share = 1.0 if mode is None else FINETUNE_RATE[mode]
        rate = share * RATE_TIMES_DIM / prior.dim
    posterior_weight = posterior_weight_of(prior, recipe, mode)
    batch_size = recipe.batch_size
    if isinstance(batch_size, str):
        batch_size = batch_of(len(train), prior.n_tokens, recipe.tabular)
    max_iter = recipe.max_iter
    if isinstance(max_iter, str):
        max_iter = EPOCHS  # of a given prior, which may be of any size and on any device
        if mode is None or recipe.tabular:
            rivals = rivals_of(prior) if posterior_weight else 0
            max_iter = epochs_of(len(train), prior, rivals, recipe.tabular)
    validation = None
    if recipe.early_stopping and rest is not None:
        validation = in_memory(first_views(codes, rest)), rows[rest], weights[rest]
    orders = None
    if not recipe.any_order:
        orders = resolve_orders(recipe.order, recipe.n_orders, prior.n_tokens, order_seed)
    kind = "a table" if recipe.tabular else "images"
    length = f"max_iter={max_iter}" + chosen(recipe.max_iter, f" (for {kind})")
    size = f"batch_size={batch_size}" + chosen(recipe.batch_size, " (a share of them, 16 to 64)")
    peak = f"learning_rate_init={rate:.3g}" + chosen(recipe.learning_rate_init, " (by the width)")
    say(recipe.verbose, f"training on {len(train)} samples: {length}, {size}, {peak}", 2)
    frozen, weights = mode in ("lora", "class_embedding"), weights[train]
    history = train_prior(
        prior,
        rows_of(codes, train),
        rows[train],
        sample_weight=None if (weights == weights[0]).all() else weights / weights.mean(),
        max_iter=max_iter,
        batch_size=min(batch_size, len(train)),
        micro_batch_size=recipe.micro_batch_size,
        learning_rate=rate,
        # a body that stays as it is must keep its null class
        weight_decay=0.0 if frozen else recipe.weight_decay,
        muon=trained_by_muon(prior, codes.shape[1], recipe.tabular, max_iter, mode),
        class_dropout=0.0 if frozen else recipe.class_dropout,
        posterior_weight=posterior_weight,
        orders=orders,
        validation=validation,
        n_iter_no_change=recipe.n_iter_no_change,
        tol=recipe.tol,
        seed=rng.randint(2**31 - 1),
        autocast=resolve_precision(recipe.precision, prior.device),
        checkpointing=recipe.checkpointing,
        checkpoints=checkpoints,
        parallel=recipe.parallel,
        verbose=recipe.verbose,
    )
    merge_finetuning(prior)
    settings = {"max_iter": max_iter, "batch_size": batch_size, "learning_rate_init": rate}
    history.settings = settings
    return history
