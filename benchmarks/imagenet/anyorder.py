"""The any-order classifier as a contestant, with each group of k orders among K; its tokens."""

import copy
from functools import partial

import numpy as np
import torch
from flops import ar_flops
from folders import CLASSES, WORDNET_IDS, opened
from records import weights_hash

from skaocls import AnyOrderARClassifier
from skaocls.devices import resolve_device, resolve_precision
from skaocls.files import write_all
from skaocls.fitted.prediction import encode_part, log_likelihoods
from skaocls.fitted.pretrained import load_published, published_tokenizer
from skaocls.scoring.aggregation import AGGREGATIONS, joint_log_proba

PARAMS = ("filename", "revision", "n_orders", "order", "crop", "latent_noise", "decoding")


def make_tokenizer(args):
    if args.tokenizer is None:
        return "auto"
    prior = load_published(args.prior, args.filename, revision=args.revision)
    return published_tokenizer(prior).set_params(source=args.tokenizer)


def make_classifier(args):
    clf = AnyOrderARClassifier.from_pretrained(
        args.prior,
        tokenizer=make_tokenizer(args) if args.tokens is None else "precomputed",
        device=args.device,
        precision=args.precision,
        random_state=args.seed,
        **{name: getattr(args, name) for name in PARAMS},
    )
    if "device" in clf.tokenizer_.get_params():
        clf.tokenizer_.set_params(device=args.device)
    return clf


def settings_of(clf, args):
    """What answers depend on; `clf` may read in another order than `args` say."""
    settings = {name: getattr(args, name) for name in ("prior", "tokenizer", *PARAMS)}
    settings["tokens"] = None if args.tokens is None else str(args.tokens)
    settings["order"] = clf.order
    precision = resolve_precision(args.precision, resolve_device(args.device))
    settings["precision"] = str(precision or torch.float32)
    tokenizer = getattr(clf.tokenizer_, "model_", torch.nn.Module())
    return settings | {"weights": weights_hash(clf.prior_, tokenizer)}


def restricted(clf, classes):
    """A copy that chooses among these classes, out of those that it knows.

    A fine-tuned classifier's labels are taken for WordNet ids or ImageNet's indices.
    """
    labels = getattr(clf, "wordnet_ids_", clf.classes_)
    column = {CLASSES.get(str(label)): i for i, label in enumerate(labels)}
    unknown = [WORDNET_IDS[c] for c in classes if c not in column]
    if unknown:
        raise SystemExit(f"The classifier does not know the class {unknown[0]}.")
    keep = [column[c] for c in classes]
    few = copy.copy(clf)
    few.model_ = clf.model_.restricted(keep)
    few.class_log_prior_ = clf.class_log_prior_[keep]
    return few


def token_file(folder, file):
    """Where the tokens of an image are kept: (rows, cols), or (n_orders, rows, cols) of crops."""
    return folder / file.parent.name / f"{file.name}.npy"


def encoded(clf, files, write_to):
    """Tokens of images, as each order sees them, kept in a folder if it is given."""
    model, tokens = clf.model_, clf.model_.tokenizer
    batch = model.reader.open([opened(f) for f in files])
    codes = encode_part(model, batch, slice(0, len(batch)), len(clf.orders_), clf.crop)
    if write_to is not None:
        kind = np.uint16 if tokens.n_codes_ <= 2**16 else np.int32
        for file, own in zip(files, codes.astype(kind)):
            to = token_file(write_to, file)
            to.parent.mkdir(parents=True, exist_ok=True)
            grid = own.reshape(*own.shape[:-1], *tokens.grid_)
            write_all(to.parent, {to.name: lambda path, grid=grid: save_array(path, grid)})
    return codes


def save_array(path, array):
    with open(path, "wb") as file:  # np.save would add an ending
        np.save(file, array)


def read_tokens(clf, files, folder):
    X = [np.load(token_file(folder, f)) for f in files]
    model = clf.model_
    batch = model.reader.open(np.stack(X))
    return encode_part(model, batch, slice(0, len(batch)), len(clf.orders_), "center")


def hits_of_groups(ll, log_prior, truth):
    """For each image and aggregation K strings; 1s in the kth are groups of k orders in the right.

    Of K orders the groups of k are the first k, the next k and so on, as many as are whole.
    """
    n, most = ll.shape[:2]
    right = [{how: [] for how in AGGREGATIONS} for _ in range(n)]
    for how in AGGREGATIONS:
        for k in range(1, most + 1):
            groups = ll[:, : most // k * k].reshape(n, most // k, k, -1)
            hits = []
            for orders in np.moveaxis(groups, 1, 0):
                joint = joint_log_proba(orders, log_prior, how)
                hits.append(truth[np.arange(n), joint.argmax(1)])
            for image, mine in zip(right, np.transpose(hits)):
                image[how].append("".join(str(int(hit)) for hit in mine))
    return right


def score(clf, args, name, files, truth):
    """What `hits_of_groups` says of the images of a data set."""
    if args.tokens is not None:
        codes = read_tokens(clf, files, args.tokens / name)
    else:
        codes = encoded(clf, files, args.write_tokens and args.write_tokens / name)
    on = {"device": args.device, "precision": args.precision}
    ll = log_likelihoods(clf.model_, codes, clf.orders_, **on)
    return hits_of_groups(ll, clf.class_log_prior_, truth)


def among(clf, args, name, classes):
    """`score` among these classes of a data set, and operations for one image with 1 ... K orders.

    Its tokens are made once, and not counted.
    """
    few = restricted(clf, classes)
    each = range(1, len(few.orders_) + 1)
    operations = [ar_flops(few.prior_, k, len(classes)) for k in each]
    return partial(score, few, args, name), operations
