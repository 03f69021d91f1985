"""The estimator's answers: posteriors, likelihoods, evidence."""

# what a mixin takes from its class:
# mypy: disable-error-code="attr-defined,misc"

from functools import partial

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from sklearn.utils import check_consistent_length, column_or_1d, gen_batches
from sklearn.utils.validation import check_is_fitted

from skaocls._caching import digest, open_store, recall_log_likelihoods, weights_of
from skaocls._encoding import encode_for_orders, patch_shape
from skaocls._validation import read_data
from skaocls.aggregation import joint_log_proba
from skaocls.devices import ahead, resolve_device
from skaocls.evidence import Evidence, spread, token_log_likelihoods, weigh
from skaocls.orders import resolve_orders
from skaocls.racing import Race, race
from skaocls.scoring import log_likelihoods, scoring_dtype

SCORE_AT_ONCE = 256  # images scored before their orders are aggregated


class PredictionMixin:
    """What a fitted :class:`skaocls.AnyOrderARClassifier` says of images."""

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
            evaluated over all classes and orders; ``"exhaustive_evaluations"``: int, what
            ``search="exhaustive"`` takes for one sample.
        """
        parts = [(self._joint_log_proba(race.log_likelihood), race) for race in self._races(X)]
        joint = np.concatenate([joint for joint, _ in parts])
        if not return_stats:
            return joint
        return joint, {
            "evaluations": np.concatenate([race.evaluations for _, race in parts]),
            "exhaustive_evaluations": self.orders_.size * len(self.classes_),
        }

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
        check_is_fitted(self)
        nothing = np.zeros(len(self.classes_))
        return np.concatenate(
            [joint_log_proba(ll, nothing, self.aggregation) for ll in self._log_likelihoods(X)]
        )

    @property
    def _n_features_out(self):
        return len(self.classes_)

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

    def score_samples(self, X):
        """Log-likelihood of each image, over classes and orders: log p(tokens).

        Low values are images unlike those of `fit`, whatever their class. It is the log of the sum
        over the classes of what :meth:`predict_joint_log_proba` returns, so `aggregation` and the
        class priors have their say.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Returns
        -------
        log_likelihood : float64 ndarray of shape (n_samples,)
            In nats, summed over the tokens.
        """
        joint = [
            joint_log_proba(ll, self.class_log_prior_, self.aggregation)
            for ll in self._log_likelihoods(X)
        ]
        return torch.from_numpy(np.concatenate(joint)).logsumexp(1).numpy()

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
            :class:`skaocls.evidence.Evidence`.

        Raises
        ------
        ValueError
            If `y` or `rival` has classes that `fit` has not seen, or another length than X.
        """
        check_is_fitted(self)
        self._validate_params()
        if y is None or (isinstance(rival, str) and rival == "runner-up"):
            joint = self.predict_joint_log_proba(X)
        own = joint.argmax(1) if y is None else self._columns(y, "y")
        others = None
        if isinstance(rival, str) and rival == "runner-up":
            joint[np.arange(len(own)), own] = -np.inf
            others = joint.argmax(1)
        elif rival is not None:
            others = self._columns(rival, "rival")
        X = read_data(self, X, reset=False)
        check_consistent_length(X, own, others)
        grid, parts = self.prior_.grid, []
        for part in gen_batches(len(X), SCORE_AT_ONCE):
            codes = encode_for_orders(self, X, part, len(self.orders_), self._order_seed)
            against = own[part] if others is None else others[part]
            log_prob = [
                self._token_log_likelihoods(codes, own[part]),
                self._token_log_likelihoods(codes, against, no_class=others is None),
            ]
            parts.append(weigh(np.stack(log_prob, axis=2), grid))
        tokens = np.concatenate([part.tokens for part in parts])
        error = np.concatenate([part.standard_error for part in parts])
        if self.image_shape_ is None:
            return Evidence(tokens, error)
        shape = self.image_shape_[:2]
        patch = patch_shape(self.tokenizer_, shape, grid)
        return Evidence(tokens, error, spread(tokens, patch, shape), spread(error, patch, shape))

    def _token_log_likelihoods(self, codes, columns, no_class=False):
        """log p(token | class or no class), (n, n_orders, n_tokens), by the prior of that class."""
        out = np.empty((len(codes), *self.orders_.shape))
        for prior, where in self._by_prior(columns):
            rows = np.full(len(where), prior.num_classes)
            if not no_class:
                rows = self.class_rows_[columns[where]]
            dtype = scoring_dtype(prior, self.precision)
            some = codes[where], self.orders_, rows[:, None]
            out[where] = token_log_likelihoods(prior, *some, dtype=dtype)[:, :, 0]
        return out

    def _by_prior(self, columns):
        """Yield each prior, on its device, and where in `columns` (of `classes_`) are its classes.

        Rows in the prior's class table are ``class_rows_[columns[where]]``.
        """
        device = resolve_device(self.device)
        for source, prior in enumerate([self.prior_, *self.added_priors_]):
            where = np.flatnonzero(self.class_sources_[columns] == source)
            if len(where):
                yield prior.to(device), where

    def _columns(self, y, name):
        y = column_or_1d(y)
        columns = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        if (unknown := self.classes_[columns] != y).any():
            raise ValueError(f"{name} has classes that fit has not seen: {np.unique(y[unknown])}.")
        return columns

    def staged_predict_proba(self, X):
        """Class probabilities after 1, 2, ... `n_orders` orders, from one pass.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Yields
        ------
        proba : float64 ndarray of shape (n_samples, n_classes)
            With ``search="exhaustive"`` exactly those of a classifier with so many orders.
        """
        for joint in self._staged_joint_log_proba(X):
            yield np.exp(torch.from_numpy(joint).log_softmax(1).numpy())

    def staged_predict(self, X):
        """The most probable class of each image after 1, 2, ... `n_orders` orders.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        Yields
        ------
        y : ndarray of shape (n_samples,)
        """
        for joint in self._staged_joint_log_proba(X):
            yield self.classes_[joint.argmax(axis=1)]

    def staged_score(self, X, y, sample_weight=None):
        """Accuracy after 1, 2, ... `n_orders` orders.

        Parameters
        ----------
        X : array-like
            As in `fit`.
        y : array-like of shape (n_samples,)
            True labels.
        sample_weight : array-like of shape (n_samples,), default=None

        Yields
        ------
        score : float
        """
        for predicted in self.staged_predict(X):
            yield accuracy_score(y, predicted, sample_weight=sample_weight)

    def _staged_joint_log_proba(self, X):
        ll = np.concatenate(list(self._log_likelihoods(X)))
        for k in range(1, ll.shape[1] + 1):
            yield self._joint_log_proba(ll[:, :k])

    @property
    def orders_(self):
        """Orders that predictions average over, (at most n_orders, n_tokens)."""
        if not hasattr(self, "prior_"):
            raise NotFittedError("orders_ is known after fit: they are drawn there.")
        return self._resolve_orders(self.prior_.n_tokens)

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
        if not hasattr(self, "_fitted_temperature"):
            raise NotFittedError(
                'temperature="auto" is found in fit, on held-out data. Call fit with it, or pass a '
                "number."
            )
        return self._fitted_temperature

    def _joint_log_proba(self, log_likelihood):
        tempered = log_likelihood / self.temperature_
        return joint_log_proba(tempered, self.class_log_prior_, self.aggregation)

    def _log_likelihoods(self, X):
        """Yield log p(tokens | class, order), (n, n_orders, n_classes), a few images at a time."""
        return (race.log_likelihood for race in self._races(X))

    def _races(self, X):
        """Yield log-likelihoods and what they took, a few images at a time."""
        check_is_fitted(self)
        self._validate_params()
        X = read_data(self, X, reset=False)
        orders = self.orders_
        parts = gen_batches(len(X), SCORE_AT_ONCE)
        each = (encode_for_orders(self, X, p, len(orders), self._order_seed) for p in parts)
        encoded = ahead(each) if resolve_device(self.device).type == "cuda" else each
        if self.search == "racing" and not self.added_priors_:
            (prior, _), *_ = self._by_prior(np.arange(len(self.classes_)))
            # what the class priors weigh beside likelihoods
            log_prior = self.temperature_ * self.class_log_prior_
            dtype = scoring_dtype(prior, self.precision)
            how = {"error": self.racing_error, "screen": self.racing_screen, "dtype": dtype}
            for codes in encoded:
                yield race(prior, codes, orders, self.class_rows_, log_prior, **how)
            return
        read = self._reader()
        for codes in encoded:
            yield Race(read(codes, orders), np.full(len(codes), orders.size * len(self.classes_)))

    def _reader(self):
        """log p(codes | class, order) as a function of codes and orders, by each class's prior."""
        columns = np.arange(len(self.classes_))
        store, readers = open_store(self.memory), []
        for prior, where in self._by_prior(columns):
            read = partial(log_likelihoods, prior)
            if store is not None:
                read = partial(recall_log_likelihoods, store, prior, digest(weights_of(prior)))
            dtype = scoring_dtype(prior, self.precision)
            readers.append((where, partial(read, labels=self.class_rows_[where], dtype=dtype)))

        def read_all(codes, orders):
            ll = np.empty((len(codes), len(orders), len(columns)))
            for where, read in readers:
                ll[:, :, where] = read(codes, orders)
            return ll

        return read_all

    def _resolve_orders(self, n_tokens):
        return resolve_orders(self.order, self.n_orders, n_tokens, self._order_seed)
