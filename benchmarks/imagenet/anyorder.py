"""The any-order classifier as a contestant, evaluated with groups of orders."""

import copy
from functools import partial

import numpy as np
import torch

from skaocls import AnyOrderARClassifier, PretrainedWeights
from skaocls.devices import resolve_device, resolve_precision
from skaocls.files import write_all
from skaocls.fitted.prediction import ScoringOptions, encode_part, log_likelihoods
from skaocls.fitted.pretrained import load_published, published_tokenizer
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba

from ..claims.flops import ar_flops
from .folders import CLASSES, WORDNET_IDS, open_image
from .records import weights_hash

PARAMS = ("n_orders", "order", "crop", "decoding")


def make_tokenizer(args, weights):
    if args.tokens is not None:
        return "precomputed"
    if args.tokenizer is None:
        return "auto"
    return published_tokenizer(load_published(weights)).set_params(source=args.tokenizer)


def make_classifier(args):
    weights = PretrainedWeights(args.prior, args.filename, args.revision)
    clf = AnyOrderARClassifier.from_pretrained(
        weights,
        tokenizer=make_tokenizer(args, weights),
        device=args.device,
        precision=args.precision,
        random_state=args.seed,
        **{name: getattr(args, name) for name in PARAMS},
    )
    if "latent_noise" in clf.tokenizer_.get_params():
        clf.tokenizer_.set_params(device=args.device, latent_noise=args.latent_noise)
    return clf


def settings_of(clf, args):
    """Return everything that predictions depend on; `clf` may have another order than `args`."""
    names = ("prior", "filename", "revision", "tokenizer", "latent_noise", *PARAMS)
    settings = {name: getattr(args, name) for name in names}
    settings["tokens"] = None if args.tokens is None else str(args.tokens)
    settings["order"] = clf.order
    precision = resolve_precision(args.precision, resolve_device(args.device))
    settings["precision"] = str(precision or torch.float32)
    tokenizer = getattr(clf.tokenizer_, "model_", torch.nn.Module())
    return settings | {"weights": weights_hash(clf.prior_, tokenizer)}


def restricted(clf, classes):
    """Return a copy that chooses among some of its classes.

    Labels of a fine-tuned classifier must be WordNet ids or class indices of ImageNet.
    """
    labels = getattr(clf, "wordnet_ids_", clf.classes_)
    column = {CLASSES.get(str(label)): i for i, label in enumerate(labels)}
    unknown = [WORDNET_IDS[c] for c in classes if c not in column]
    if unknown:
        raise SystemExit(f"The classifier does not know the class {unknown[0]}.")
    keep = [column[c] for c in classes]
    class_prior = clf.class_prior_[keep] / clf.class_prior_[keep].sum()
    smaller = copy.copy(clf).set_params(class_prior=class_prior)
    smaller.model_ = clf.model_.restricted(keep)
    return smaller


def token_file(folder, file):
    """Return the file of an image's tokens, (rows, cols) or (n_orders, rows, cols)."""
    return folder / file.parent.name / f"{file.name}.npy"


def encode(clf, files, folder):
    """Encode images as each order reads them, and store the tokens if a folder is given."""
    model, tokens = clf.model_, clf.model_.tokenizer
    batch = model.reader.open([open_image(f) for f in files])
    codes = encode_part(model, batch, slice(0, len(batch)), len(clf.orders_), clf.crop)
    if folder is not None:
        dtype = np.uint16 if tokens.n_codes_ <= 2**16 else np.int32
        for file, image_codes in zip(files, codes.astype(dtype)):
            path = token_file(folder, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            grid = image_codes.reshape(*image_codes.shape[:-1], *tokens.grid_)
            write_all(path.parent, {path.name: lambda temporary, a=grid: save_array(temporary, a)})
    return codes


def save_array(path, array):
    with open(path, "wb") as file:  # np.save would append a suffix to a path
        np.save(file, array)


def read_tokens(clf, files, folder):
    X = [np.load(token_file(folder, f)) for f in files]
    model = clf.model_
    batch = model.reader.open(np.stack(X))
    return encode_part(model, batch, slice(0, len(batch)), len(clf.orders_), "center")


def hits_of_groups(ll, log_prior, truth):
    """Return for each image and aggregation which groups of 1 ... K orders are right.

    The groups of k orders are disjoint: the first k, the next k and so on. The kth string contains
    "1" for each group that is right, and "0" for the others.
    """
    n, n_orders = ll.shape[:2]
    right = [{aggregation: [] for aggregation in AGGREGATIONS} for _ in range(n)]
    for aggregation in AGGREGATIONS:
        for k in range(1, n_orders + 1):
            groups = ll[:, : n_orders // k * k].reshape(n, n_orders // k, k, -1)
            hits = []
            for group in np.moveaxis(groups, 1, 0):
                joint = joint_log_proba(group, log_prior, aggregation)
                hits.append(truth[np.arange(n), joint.argmax(1)])
            for image, image_hits in zip(right, np.transpose(hits)):
                image[aggregation].append("".join(str(int(hit)) for hit in image_hits))
    return right


def score(clf, args, name, files, truth):
    """Return the result of `hits_of_groups` for images of a data set."""
    if args.tokens is not None:
        codes = read_tokens(clf, files, args.tokens / name)
    else:
        codes = encode(clf, files, args.write_tokens and args.write_tokens / name)
    options = ScoringOptions(device=args.device, precision=args.precision)
    ll = log_likelihoods(clf.model_, codes, clf.orders_, options)
    return hits_of_groups(ll, clf.class_log_prior_, truth)


def among(clf, args, name, classes):
    """Return `score` among some classes, and the operations for one image with 1 ... K orders."""
    clf = restricted(clf, classes)
    counts = range(1, len(clf.orders_) + 1)
    operations = [ar_flops(clf.prior_, k, len(classes)) for k in counts]
    return partial(score, clf, args, name), operations
