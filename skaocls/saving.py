"""The native format: a folder of JSON and safetensors, read without executing code.

``config.json`` holds classes, parameters and shapes, ``model.safetensors`` the prior,
``tokenizer.safetensors`` what the tokenizer learned, ``model-1.safetensors`` and so on the priors
that `partial_fit` added. Embedded and published priors are stored alike. Files are written whole or
not at all, and replace older ones only when all are written.
"""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

import skaocls
from skaocls.loading import find_file, prior_from_state_dict, read_state_dict
from skaocls.prior import AnyOrderPrior
from skaocls.tokenizers import (
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    QuantileTokenizer,
)

FORMAT = 1
CONFIG, MODEL, TOKENIZER = "config.json", "model.safetensors", "tokenizer.safetensors"
TOKENIZERS = {
    t.__name__: t for t in (LlamaGenTokenizer, MaskGITTokenizer, PatchTokenizer, QuantileTokenizer)
}


def write_all(folder: Path, writers: dict[str, Callable]) -> None:
    """Call each write(temporary path), and when all are done put the files in place."""
    temporary: dict[str, str] = {}
    try:
        for name, write in writers.items():
            handle, temporary[name] = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
            os.close(handle)
            write(temporary[name])
            with open(temporary[name], "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary[name], 0o644)
        for name, path in temporary.items():
            os.replace(path, folder / name)
    except BaseException:
        for path in temporary.values():
            Path(path).unlink(missing_ok=True)
        raise


def tensor_writer(tensors: dict) -> Callable:
    tensors = {k: torch.as_tensor(v).detach().cpu().contiguous() for k, v in tensors.items()}
    return lambda path: save_file(tensors, path, {"format": "pt"})


def save(clf, folder) -> None:
    """Write a fitted classifier into a folder, which is made if need be."""
    config = {"format": FORMAT, "library": "skaocls", "version": skaocls.__version__}
    params = clf.get_params(deep=False) | {"memory": None}  # a folder of this machine
    config["params"] = {name: to_json(value, name) for name, value in params.items()}
    config["classes"] = {"dtype": clf.classes_.dtype.str, "values": clf.classes_.tolist()}
    for name in LEARNED:
        if hasattr(clf, name):
            config[name] = to_json(getattr(clf, name), name)
    config["prior"] = {"grid": list(clf.prior_.grid), "n_head": clf.prior_.n_head}
    config["added_priors"] = len(clf.added_priors_)
    tokenizer, arrays = tokenizer_state(clf.tokenizer_)
    config["tokenizer"] = tokenizer
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    added = {added_model(i): p.state_dict() for i, p in enumerate(clf.added_priors_)}
    writers = {  # the configuration last: a folder with it is complete
        MODEL: tensor_writer(clf.prior_.state_dict()),
        **{name: tensor_writer(state) for name, state in added.items()},
        TOKENIZER: tensor_writer(arrays),
        CONFIG: lambda path: Path(path).write_text(text, encoding="utf-8"),
    }
    write_all(folder, writers)


def read_config(source, *, revision=None, token=None) -> dict | None:
    """Configuration of a saved classifier, or None if the source is none."""
    try:
        path = find_file(source, CONFIG, revision=revision, token=token)
    except FileNotFoundError:
        return None
    if path.name != CONFIG:  # source is a file of weights
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise ValueError(f"{path} is no readable JSON: {exc}.") from exc
    if not isinstance(config, dict) or config.get("library") != "skaocls":
        return None
    if config["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by skaocls {config['version']} in format {config['format']}; this "
            f"version, {skaocls.__version__}, reads up to format {FORMAT}. Upgrade skaocls."
        )
    return config


def load(cls, config: dict, source, *, revision=None, token=None, params=None):
    """The classifier that :func:`save` wrote."""
    clf = cls(**({k: from_json(v) for k, v in config["params"].items()} | (params or {})))
    classes = config["classes"]
    clf.classes_ = np.array(classes["values"], dtype=classes["dtype"])
    for name in LEARNED:
        if name in config:
            setattr(clf, name, LEARNED[name](config[name]))
    at = {"revision": revision, "token": token}
    clf.prior_, clf.tokenizer_ = load_models(config, source, **at)
    clf.added_priors_ = [
        load_model(config, source, added_model(i), **at) for i in range(config["added_priors"])
    ]
    return clf


def load_models(config: dict, source, *, revision=None, token=None):
    """First prior and tokenizer of a saved classifier."""
    prior = load_model(config, source, MODEL, revision=revision, token=token)
    path = find_file(source, TOKENIZER, revision=revision, token=token)
    return prior, restore_tokenizer(config["tokenizer"], read_state_dict(path))


def load_model(config: dict, source, name: str, *, revision=None, token=None) -> AnyOrderPrior:
    path = find_file(source, name, revision=revision, token=token)
    return prior_from_state_dict(read_state_dict(path), **config["prior"], source=str(path))


def added_model(i: int) -> str:
    """File of the i-th prior that `partial_fit` added."""
    return f"model-{i + 1}.safetensors"


def push(clf, repo_id, metrics, private, token, commit_message) -> str:
    """Upload a fitted classifier and its model card; the commit's address."""
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(clf, folder)
        Path(folder, "README.md").write_text(model_card(clf, repo_id, metrics), encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message
        )
    return str(commit.commit_url)


def model_card(clf, repo_id: str, metrics: dict) -> str:
    """The README of a repository: what it is, how good, how to use it."""
    names = [str(c) for c in getattr(clf, "class_names_", clf.classes_)]
    shown = ", ".join(names[:100]) + (", ..." if len(names) > 100 else "")
    shape = clf.image_shape_
    data = f"images of {shape[0]} x {shape[1]} x {shape[2]}" if shape else "tables"
    rows, cols = clf.prior_.grid
    n_parameters = sum(p.numel() for p in clf.prior_.parameters())
    lines = [
        "---",
        "library_name: skaocls",
        "pipeline_tag: " + ("image-classification" if shape else "tabular-classification"),
        "tags: [any-order-autoregressive, generative-classifier, scikit-learn]",
        "---",
        "",
        f"# {repo_id.split('/')[-1]}",
        "",
        f"A generative classifier of {data}, made with skaocls {skaocls.__version__}: an any-order "
        f"autoregressive transformer of {n_parameters:,} parameters over {rows} x {cols} tokens, "
        "averaged over orders ([arXiv 2603.19122](https://arxiv.org/abs/2603.19122)).",
        "",
        "```python",
        "from skaocls import AnyOrderARClassifier",
        "",
        f'clf = AnyOrderARClassifier.from_pretrained("{repo_id}")',
        "clf.predict_proba(X)",
        "```",
        "",
        f"Classes ({len(names)}): {shown}",
    ]
    if metrics:
        lines += ["", "| metric | value |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return "\n".join(lines) + "\n"


def tokenizer_state(tokenizer) -> tuple[dict, dict]:
    """What describes a tokenizer as JSON, and its arrays."""
    name = type(tokenizer).__name__
    if TOKENIZERS.get(name) is not type(tokenizer):
        raise TypeError(
            f"{name} cannot be saved in this format, which knows {', '.join(TOKENIZERS)}. Use "
            "joblib.dump."
        )
    config = {"type": name, "params": {k: to_json(v, k) for k, v in tokenizer.get_params().items()}}
    if hasattr(tokenizer, "model_"):
        return config, tokenizer.model_.state_dict()
    config["attributes"] = {
        k: to_json(getattr(tokenizer, k), k) for k in TOKENIZER_LEARNED if hasattr(tokenizer, k)
    }
    if hasattr(tokenizer, "codebook_"):
        return config, {"codebook_": tokenizer.codebook_}
    lists = ("thresholds_", "bin_means_")
    return config, {f"{k}.{i}": a for k in lists for i, a in enumerate(getattr(tokenizer, k))}


def restore_tokenizer(config: dict, arrays: dict):
    tokenizer = TOKENIZERS[config["type"]](**{k: from_json(v) for k, v in config["params"].items()})
    if "attributes" not in config:
        return tokenizer._set_weights(arrays)
    for name, value in config["attributes"].items():
        setattr(tokenizer, name, TOKENIZER_LEARNED[name](value))
    if "codebook_" in arrays:
        tokenizer.codebook_ = arrays["codebook_"].numpy()
    else:
        for name in ("thresholds_", "bin_means_"):
            columns = range(tokenizer.n_features_in_)
            setattr(tokenizer, name, [arrays[f"{name}.{i}"].numpy() for i in columns])
    return tokenizer


def to_json(value, name):
    """A parameter or attribute in JSON's terms."""
    if isinstance(value, AnyOrderPrior):  # its weights are saved as the fitted prior's
        dim = value.output.weight.shape[1]
        return {"dim": dim, "n_layer": len(value.layers), "n_head": value.n_head}
    if isinstance(value, FrozenEstimator):
        value = value.estimator
    if isinstance(value, BaseEstimator):
        params = {k: to_json(v, k) for k, v in value.get_params(False).items()}
        return {"type": type(value).__name__, "params": params}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_json(v, name) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v, name) for k, v in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value == -np.inf:  # log of a class prior of 0
        return None
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    if isinstance(value, np.random.RandomState):
        return None
    return value


def from_json(value):
    if isinstance(value, dict) and value.get("type") in TOKENIZERS:
        params = {k: from_json(v) for k, v in value["params"].items()}
        return TOKENIZERS[value["type"]](**params)
    if isinstance(value, list):
        return np.array(value) if value and isinstance(value[0], list) else tuple(value)
    return value


def optional_tuple(value):
    return None if value is None else tuple(value)


def log_array(values):
    return np.array([-np.inf if v is None else v for v in values], dtype=np.float64)


LEARNED: dict[str, Callable] = {
    "class_count_": np.array,
    "class_log_prior_": log_array,
    "class_rows_": np.array,
    "class_sources_": np.array,
    "class_names_": np.array,
    "wordnet_ids_": np.array,
    "_order_seed": int,
    "_fitted_temperature": float,
    "image_shape_": optional_tuple,
    "declared_shape_": optional_tuple,
    "n_features_in_": int,
    "feature_names_in_": lambda names: np.array(names, dtype=object),
    "loss_curve_": list,
    "validation_scores_": lambda scores: scores,
    "n_iter_": int,
    "best_iter_": int,
}
TOKENIZER_LEARNED: dict[str, Callable] = {
    "n_codes_": int,
    "grid_": tuple,
    "patch_size_": tuple,
    "patch_std_": float,
    "image_shape_": optional_tuple,
    "declared_shape_": optional_tuple,
    "n_features_in_": int,
}
