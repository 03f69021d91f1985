"""The estimator's ways in and out: published weights, folders, the hub, pickles."""

# what a mixin takes from its class:
# mypy: disable-error-code="attr-defined,call-arg,misc"

import copy

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skaocls._validation import class_log_prior
from skaocls.pretrained import (
    PUBLISHED,
    check_agreement,
    find_imagenet_classes,
    imagenet_classes,
    load_published,
    published_tokenizer,
)
from skaocls.saving import load, push, read_config, save


class PretrainedMixin:
    """Loading, saving and sharing of :class:`skaocls.AnyOrderARClassifier`."""

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
        **params,
    ):
        """A fitted classifier from published weights or from what `save_pretrained` wrote.

        Published ImageNet weights classify at once, without `fit`: `classes_` are ImageNet's
        indices, `class_names_` and `wordnet_ids_` say what they are, class priors are uniform,
        and files are resized and cropped as in the paper.

        Parameters
        ----------
        source : str or path
            A folder or hub repository written by `save_pretrained` or `push_to_hub`; or
            published weights, see :func:`skaocls.pretrained.load_published`.
        filename : str, default=None
            File of published weights within a folder or repository.
        revision : str, default=None
            Branch, tag or commit of a repository.
        token : str or bool, default=None
            As in ``huggingface_hub``.
        tokenizer : "auto" or transformer, default="auto"
            For published weights; ``"auto"`` is the one of their vocabulary, with its own
            published weights. A transformer is cloned and fitted.
        classes : list of int or str, default=None
            Only these classes, for published weights: ImageNet indices, WordNet ids or names.
            What is left out costs nothing.
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
        if filename is None and source not in PUBLISHED:
            config = read_config(source, revision=revision, token=token)
            if config is not None:
                return load(cls, config, source, revision=revision, token=token, params=params)
        clf = cls(prior=source, tokenizer=tokenizer, filename=filename, revision=revision, **params)
        clf._validate_params()
        prior = load_published(source, filename, revision=revision, token=token)
        if isinstance(tokenizer, str):
            tokenizer = published_tokenizer(prior).fit()
        elif not hasattr(tokenizer, "n_codes_"):
            tokenizer = clone(tokenizer).fit()
        check_agreement(prior, tokenizer)
        clf.prior_, clf.tokenizer_ = prior, tokenizer
        clf.declared_shape_ = clf.image_shape_ = (*tokenizer.image_shape_[:2], 3)
        clf.n_features_in_ = int(np.prod(clf.image_shape_))
        clf._set_published_classes(classes)
        clf._order_seed = check_random_state(clf.random_state).randint(2**31 - 1)
        return clf

    def save_pretrained(self, folder):
        """Write the fitted classifier as JSON and safetensors; see :mod:`skaocls.saving`.

        A prior module given as parameter is stored as its sizes, a RandomState and `memory` as
        None.

        Parameters
        ----------
        folder : path
            Made if need be.

        Raises
        ------
        TypeError
            If the tokenizer is none of this library's.
        """
        check_is_fitted(self)
        save(self, folder)

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
        commit_message : str

        Returns
        -------
        url : str
            Of the commit.
        """
        check_is_fitted(self)
        return push(self, repo_id, metrics or {}, private, token, commit_message)

    def _set_published_classes(self, classes):
        n_rows = self.prior_.num_classes
        imagenet = n_rows == len(imagenet_classes())
        if classes is None:
            rows = list(range(n_rows))
        elif imagenet:
            rows = find_imagenet_classes(classes)
        else:
            rows = sorted(set(classes))
            if not set(rows) <= set(range(n_rows)):
                raise ValueError(f"classes must be among 0 ... {n_rows - 1}, got {classes}.")
        self.class_rows_ = np.array(rows)
        self.class_sources_, self.added_priors_ = np.zeros(len(rows), dtype=int), []
        self.classes_ = self.class_rows_.copy()
        if imagenet:
            table = imagenet_classes()
            self.class_names_ = np.array([table[row]["name"] for row in rows])
            self.wordnet_ids_ = np.array([table[row]["wordnet_id"] for row in rows])
        self.class_count_ = np.ones(len(rows))
        self.class_log_prior_ = class_log_prior(self.priors, self.class_count_)

    def __getstate__(self):
        state = super().__getstate__().copy()
        if "prior_" in state:  # what was trained on a GPU must load without one
            for name in ("prior_", "added_priors_"):
                state[name] = copy.deepcopy(state[name])
            for prior in (state["prior_"], *state["added_priors_"]):
                prior.cpu()
        return state
