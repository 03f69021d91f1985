"""How an estimator learns: from checked data to tokenizer, priors, and the classes they know."""

# what a mixin takes from its class:
# mypy: disable-error-code="attr-defined,misc"

import copy
import warnings

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state

from skaocls._caching import content, digest, open_store, weights_of
from skaocls._encoding import fit_tokenizer, training_tokens
from skaocls._validation import class_log_prior, known_classes, read_data, read_labels
from skaocls.calibration import fit_temperature
from skaocls.devices import resolve_device, resolve_precision
from skaocls.finetuning import merge_finetuning, prepare_finetuning, set_classes
from skaocls.orders import DRAWN
from skaocls.pretrained import PUBLISHED, check_agreement, load_published, published_tokenizer
from skaocls.prior import AnyOrderPrior
from skaocls.saving import load_models, read_config
from skaocls.training import History, train_prior

RATE_TIMES_DIM = 0.4
CLASS_FACTS = ("class_names_", "wordnet_ids_")  # of published weights, if any
FINETUNE_RATE = {"full": 0.1, "lora": 0.5, "class_embedding": 5.0}
# What fit learns does not depend on these
AFTER_FIT = {
    "aggregation",
    "crop",
    "device",
    "latent_noise",
    "memory",
    "n_orders",
    "priors",
    "racing_error",
    "racing_screen",
    "search",
    "temperature",
    "verbose",
}


class FittingMixin:
    """Training of :class:`skaocls.AnyOrderARClassifier`."""

    class_count_: np.ndarray

    def _begin(self, X, y, sample_weight, classes=None):
        """Learn everything anew."""
        rng = check_random_state(self.random_state)
        given, tokenizer, shape = self._given()
        X = read_data(self, X, reset=True, image_shape=shape)
        X, y, weights = read_labels(self, X, y, sample_weight)
        self.classes_ = known_classes(y, classes)
        labels = np.searchsorted(self.classes_, y)
        self.class_count_ = np.bincount(labels, weights, minlength=len(self.classes_))
        self.class_log_prior_ = class_log_prior(self.priors, self.class_count_)
        for name in (*CLASS_FACTS, "_fitted_temperature"):
            self.__dict__.pop(name, None)

        def learn():
            return self._learn(given, tokenizer, X, labels, weights, rng)

        store = open_store(self.memory)
        if store is None:
            learned, history, held_out = learn()
        else:
            about = self._training_params(), given and weights_of(given)
            key = digest("fit", *about, content(X), labels, weights, self.classes_)
            learned, history, held_out = store.recall(key, learn)
        self.__dict__.update(learned)
        if self.temperature == "auto":
            self._fit_temperature(*held_out)
        return self._report([history])

    def _go_on(self, X, y, sample_weight, grow=False, classes=None):
        """Train what was learned on further images; with `grow`, classes may be new."""
        rng = check_random_state(self.random_state)
        X = read_data(self, X, reset=False)
        X, y, weights = read_labels(self, X, y, sample_weight)
        if grow:
            self._add_classes(known_classes(y, classes))
        elif not np.isin(y, self.classes_).all():
            raise ValueError(
                "warm_start can only be used where `self.classes_` is the same as in the previous "
                f"call to fit. Previously got {self.classes_}, `y` has {np.unique(y)}."
            )
        labels = np.searchsorted(self.classes_, y)
        before = self.class_count_ if grow else 0.0
        self.class_count_ = before + np.bincount(labels, weights, minlength=len(self.classes_))
        self.class_log_prior_ = class_log_prior(self.priors, self.class_count_)
        histories, held_out = self._learn_more(X, labels, weights, rng, whole=not grow)
        if self.temperature == "auto":
            self._fit_temperature(*held_out)
        return self._report(histories)

    def _add_classes(self, classes):
        """Make room for classes that are not among `classes_` yet."""
        old = self.classes_
        kinds = {"i" if a.dtype.kind == "u" else a.dtype.kind for a in (old, classes)}
        if len(kinds) > 1:
            raise ValueError(
                f"Labels were of type {old.dtype} in earlier calls, but are of type "
                f"{classes.dtype} now: {classes}."
            )
        self.classes_ = np.union1d(old, classes)
        was, n = np.searchsorted(self.classes_, old), len(self.classes_)
        nothing = {"class_count_": 0.0, "class_sources_": 0, "class_rows_": self.prior_.num_classes}
        for name, value in nothing.items():
            grown = np.full(n, value)
            grown[was] = getattr(self, name)
            setattr(self, name, grown)
        for name in CLASS_FACTS:
            if hasattr(self, name):
                facts = self.classes_.astype(str).astype(object)
                facts[was] = getattr(self, name)
                setattr(self, name, facts.astype(str))

    def _report(self, histories):
        """Tell of the training that was done, and warn where it was too short."""
        self.loss_curve_ = [loss for history in histories for loss in history.loss_curve]
        self.validation_scores_ = None
        if self.early_stopping:
            self.validation_scores_ = [s for history in histories for s in history.validation_curve]
        self.n_iter_ = max(history.n_iter for history in histories)
        self.best_iter_ = max(history.best_iter for history in histories)
        if not all(history.converged for history in histories):
            warnings.warn(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the "
                "optimization hasn't converged yet. Consider increasing max_iter.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return self

    def _fit_temperature(self, codes, labels, weights):
        ll = self._reader()(codes, self.orders_)
        self._fitted_temperature = fit_temperature(
            ll, labels, self.class_log_prior_, self.aggregation, weights
        )

    def _given(self):
        """A prior to fine-tune or None, the tokenizer, and the image shape to read."""
        tokenizer, shape = self.tokenizer, self.image_shape
        if isinstance(self.prior, AnyOrderPrior):
            given = copy.deepcopy(self.prior)
        elif isinstance(self.prior, dict) or self.prior == "auto":
            given = None
        else:
            at = {"revision": self.revision}
            known = self.prior in PUBLISHED or self.filename is not None
            config = None if known else read_config(self.prior, **at)
            if config is not None:
                given, own = load_models(config, self.prior, **at)
                own, own_shape = FrozenEstimator(own), config["declared_shape_"]
            else:
                given = load_published(self.prior, self.filename, **at)
                own = published_tokenizer(given) if isinstance(tokenizer, str) else None
                own_shape = getattr(own or tokenizer, "image_shape", None)
            tokenizer = own if isinstance(tokenizer, str) else tokenizer
            shape = shape or own_shape
        return given, tokenizer, shape

    def _training_params(self):
        """All parameters that what `fit` learns depends on."""
        params = {k: v for k, v in self.get_params(deep=False).items() if k not in AFTER_FIT}
        if not isinstance(self.order, str):
            params["n_orders"] = self.n_orders
        elif self.order in DRAWN:
            params["order"] = "random"
        device = resolve_device(self.device).type
        return params | {"held_out": self.temperature == "auto", "device": device}

    def _learn(self, given, tokenizer, X, labels, weights, rng):
        """Learn tokenizer and prior from data alone.

        Returns
        -------
        learned : dict
            Fitted attributes.
        history : History
        held_out : tuple (codes, labels, weights) or None
            What was not trained on.
        """
        device = resolve_device(self.device)
        self.tokenizer_ = fit_tokenizer(self, tokenizer, X, rng)
        codes = training_tokens(self, X, rng)
        seen, rows = np.unique(labels, return_inverse=True)
        prior = self._start(given, codes, rows, len(seen), device, rng)
        self._order_seed = rng.randint(2**31 - 1)
        train, held_out = self._split(rows, rng)
        history = self._train(
            prior, codes, rows, weights, train, held_out, rng, None if given is None else "given"
        )
        # classes that have no images yet are read as no class at all
        class_rows = np.full(len(self.classes_), prior.num_classes)
        class_rows[seen] = np.arange(len(seen))
        learned = {
            "tokenizer_": self.tokenizer_,
            "prior_": prior,
            "added_priors_": [],
            "class_rows_": class_rows,
            "class_sources_": np.zeros(len(class_rows), dtype=int),
            "_order_seed": self._order_seed,
        }
        if held_out is not None:
            held_out = codes[held_out, 0], labels[held_out], weights[held_out]
        return learned, history, held_out

    def _learn_more(self, X, labels, weights, rng, whole):
        """Train on further images.

        Classes that were learned together go on together, all weights of their prior, if all of
        them are in `labels` (or if `whole`); else only the vectors of those that are, so that no
        other class is moved. Classes without a prior get a vector in the first one, or a copy of it
        that is trained on them and reads them alone.
        """
        device = resolve_device(self.device)
        codes = training_tokens(self, X, rng)
        new = (self.class_sources_ == 0) & (self.class_rows_ == self.prior_.num_classes)
        histories: list[History] = []
        held_out: list[int] = []

        def train(prior, mine, rows, mode):
            train, rest = self._split(rows, rng)
            some = codes[mine], rows, weights[mine], train, rest
            histories.append(self._train(prior, *some, rng, mode))
            held_out.extend([] if rest is None else mine[rest])

        for source, prior in enumerate([self.prior_, *self.added_priors_]):
            mine = np.flatnonzero(~new[labels] & (self.class_sources_[labels] == source))
            if len(mine):
                rows = self.class_rows_[labels[mine]]
                all_of_it = whole or len(np.unique(rows)) == prior.num_classes
                mode = "full" if all_of_it else "class_embedding"
                prepare_finetuning(prior.to(device), mode)
                train(prior, mine, rows, None if all_of_it else mode)
        mine = np.flatnonzero(new[labels])
        if len(mine):
            which, rows = np.unique(labels[mine], return_inverse=True)
            prior, mode = self.prior_.to(device), self.finetune
            seed = rng.randint(2**31 - 1)
            keep = mode == "class_embedding"
            first = prior.num_classes if keep else 0
            prior = prior if keep else copy.deepcopy(prior)
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                some = codes[mine, 0], rows, len(which)
                set_classes(prior, *some, self.new_classes, seed, keep=keep)
                prepare_finetuning(prior, mode, rank=self.lora_rank, alpha=self.lora_alpha)
            train(prior, mine, first + rows, mode)
            if not keep:
                self.added_priors_.append(prior)
            self.class_rows_[new] = self.prior_.num_classes
            self.class_rows_[which] = first + np.arange(len(which))
            self.class_sources_[which] = 0 if keep else len(self.added_priors_)
        rest = np.array(held_out, dtype=int)
        return histories, (codes[rest, 0], labels[rest], weights[rest])

    def _start(self, given, codes, labels, n_classes, device, rng):
        """The prior that training starts from."""
        seed = rng.randint(2**31 - 1)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            if given is None:
                vocab_size, grid = self.tokenizer_.n_codes_, tuple(self.tokenizer_.grid_)
                sizes = self.prior
                if not isinstance(sizes, dict):
                    sizes = default_sizes(grid, len(labels))
                return AnyOrderPrior(vocab_size, grid, n_classes, **sizes).to(device)
            check_agreement(given, self.tokenizer_)
            given.to(device)
            if given.num_classes != n_classes or not isinstance(self.prior, AnyOrderPrior):
                set_classes(given, codes[:, 0], labels, n_classes, self.new_classes, seed)
            prepare_finetuning(given, self.finetune, rank=self.lora_rank, alpha=self.lora_alpha)
            return given

    def _split(self, rows, rng):
        """Indices to train on, and held-out ones or None."""
        everything = np.arange(len(rows))
        if not self.early_stopping and self.temperature != "auto":
            return everything, None
        counts = np.bincount(rows)
        return train_test_split(
            everything,
            test_size=self.validation_fraction,
            stratify=rows if counts[counts > 0].min() > 1 else None,
            random_state=rng,
        )

    def _train(self, prior, codes, rows, weights, train, held_out, rng, mode) -> History:
        """Train a prior in place; `mode` is what is fine-tuned, None for all at the full rate."""
        mode = self.finetune if mode == "given" else mode
        rate, frozen = self.learning_rate_init, mode not in (None, "full")
        if rate == "auto":
            share = 1.0 if mode is None else FINETUNE_RATE[mode]
            rate = share * RATE_TIMES_DIM / prior.output.weight.shape[1]
        validation = None
        if self.early_stopping:
            validation = codes[held_out, 0], rows[held_out], weights[held_out]
        batch_size = self.batch_size
        if batch_size == "auto":
            batch_size = int(np.clip(len(train) // 8, 16, 64))
        weights = weights[train]
        alike = (weights == weights[0]).all()
        any_order = isinstance(self.order, str) and self.order in DRAWN
        history = train_prior(
            prior,
            codes[train],
            rows[train],
            sample_weight=None if alike else weights / weights.mean(),
            max_iter=self.max_iter,
            batch_size=min(batch_size, len(train)),
            micro_batch_size=self.micro_batch_size,
            learning_rate=rate,
            # a body that stays as it is must keep its null class
            weight_decay=0.0 if frozen else self.weight_decay,
            class_dropout=0.0 if frozen else self.class_dropout,
            orders=None if any_order else self._resolve_orders(prior.n_tokens),
            validation=validation,
            n_iter_no_change=self.n_iter_no_change,
            tol=self.tol,
            seed=rng.randint(2**31 - 1),
            autocast=resolve_precision(self.precision, prior.output.weight.device),
            checkpointing=self.checkpointing,
            verbose=self.verbose,
        )
        merge_finetuning(prior)
        return history


def default_sizes(grid, n_samples):
    """Sizes of a new prior that suit the data: wider and deeper with more tokens and samples."""
    if grid[0] * grid[1] < 8 or n_samples < 200:
        return {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32}
    if n_samples < 10_000:  # many steps of a small prior beat few of a large one
        return {"dim": 64, "n_layer": 2, "n_head": 4, "multiple_of": 64}
    return {"dim": 192, "n_layer": 4, "n_head": 6}
