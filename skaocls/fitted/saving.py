"""The native format: a folder of JSON and safetensors, read without executing code.

``config.json`` holds classes, shapes and parameters, ``model.safetensors`` the prior,
``tokenizer.safetensors`` what the tokenizer learned, ``model-1.safetensors`` and so on the priors
that `partial_fit` added. Embedded and published priors are stored alike. Files are written whole or
not at all, and replace older ones only when all are written.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import HfApi
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

from skaocls.devices import own_torch_state
from skaocls.files import find_file, read_state_dict, tensor_writer, write_all
from skaocls.fitted.model import FittedModel
from skaocls.fitted.saving_checks import check_config, check_model
from skaocls.images.reader import Reader
from skaocls.priors.interface import Prior
from skaocls.priors.loading import own_prior_from_state_dict, shared_trunk_from_state_dict
from skaocls.tokenizers import (
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    PrecomputedTokenizer,
    QuantileTokenizer,
)
from skaocls.version import __version__

FORMAT = 1
MOST_JSON = 2**26  # bytes of a configuration
CONFIG, MODEL, TOKENIZER = "config.json", "model.safetensors", "tokenizer.safetensors"
ARRAYS = ("sources", "rows", "class_count", "class_names", "wordnet_ids")
Token = str | bool | None
TOKENIZERS: dict[str, Any] = {
    t.__name__: t
    for t in (
        LlamaGenTokenizer,
        MaskGITTokenizer,
        PatchTokenizer,
        PrecomputedTokenizer,
        QuantileTokenizer,
    )
}


@own_torch_state()
def save(
    model: FittedModel, folder: str | os.PathLike[str], about: dict[str, Any] | None = None
) -> None:
    """Write a model into a folder, which is made if need be.

    Parameters
    ----------
    model : FittedModel
    folder : path
    about : dict, default=None
        What else to keep, in terms that :func:`to_json` knows: of an estimator its parameters and
        what happened in `fit`.

    Raises
    ------
    TypeError
        If the tokenizer is none of this library's.
    """
    config = {"format": FORMAT, "library": "skaocls", "version": __version__}
    config |= {name: to_json(value) for name, value in (about or {}).items()}
    classes = model.classes
    config["classes"] = {"dtype": classes.dtype.str, "values": labels_to_json(classes)}
    config |= {name: to_json(getattr(model, name)) for name in ARRAYS}
    config |= {"order_seed": model.order_seed, "views": model.views}
    config["reader"] = to_json(vars(model.reader))
    config["prior"] = {"grid": list(model.prior.grid), "n_head": model.prior.transformer.n_head}
    config["added_priors"] = len(model.priors) - 1
    config["tokenizer"], arrays = tokenizer_state(model.tokenizer)
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    priors = {model_file(i): p.state_dict() for i, p in enumerate(model.priors)}
    writers = {  # the configuration last: a folder with it is complete
        **{name: tensor_writer(state) for name, state in priors.items()},
        TOKENIZER: tensor_writer(arrays),
        CONFIG: lambda path: Path(path).write_text(text, encoding="utf-8"),
    }
    write_all(folder, writers)


def read_config(
    source: str | os.PathLike[str], *, revision: str | None = None, token: Token = None
) -> dict[str, Any] | None:
    """Configuration of a saved model, or None if the source is none."""
    try:
        path = find_file(source, CONFIG, revision=revision, token=token)
    except FileNotFoundError:
        return None
    if path.name != CONFIG:  # source is a file of weights
        return None
    try:
        if path.stat().st_size > MOST_JSON:
            raise ValueError(f"it is larger than {MOST_JSON} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{path} is no readable JSON: {exc}.") from exc
    if not isinstance(config, dict) or config.get("library") != "skaocls":
        return None
    written = config.get("format")
    if not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise ValueError(
            f"{path} was written by skaocls {config.get('version')} in format {written!r}; this "
            f"version, {__version__}, reads up to format {FORMAT}. Upgrade skaocls."
        )
    return config


@own_torch_state(grad=True)
def load(
    config: dict[str, Any],
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: Token = None,
) -> FittedModel:
    """The model that :func:`save` wrote; `config` is what :func:`read_config` returned.

    Raises
    ------
    OSError
        If a file is not there.
    ValueError
        If one was cut off or changed, so that they are no model.
    """
    try:
        check_config(config)
        model = restore(config, source, revision=revision, token=token)
        check_model(model)
    except OSError:
        raise
    except Exception as exc:  # a configuration that was changed leads to all sorts
        why = exc if isinstance(exc, ValueError) else repr(exc)
        raise ValueError(f"{source!s} holds no model that can be restored: {why}.") from exc
    return model


def restore(
    config: dict[str, Any],
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: Token = None,
) -> FittedModel:
    """What :func:`load` returns, of a sound configuration."""
    at: dict[str, Any] = {"revision": revision, "token": token}
    classes = config["classes"]
    arrays = {name: config[name] for name in ARRAYS}
    path = find_file(source, TOKENIZER, **at)
    return FittedModel(
        reader=restore_reader(config["reader"]),
        tokenizer=restore_tokenizer(config["tokenizer"], read_state_dict(path)),
        priors=tuple(
            load_model(config, source, model_file(i), **at)
            for i in range(1 + config["added_priors"])
        ),
        classes=labels_from_json(classes["values"], classes["dtype"]),
        order_seed=config["order_seed"],
        views=config.get("views", False),
        **cast(
            dict[str, Any],
            {name: None if values is None else np.array(values) for name, values in arrays.items()},
        ),
    )


def load_model(
    config: dict[str, Any], source: str | os.PathLike[str], name: str, **at: Any
) -> Prior:
    path = find_file(source, name, **at)
    state = read_state_dict(path)
    shared = "head.classes.weight" in state
    from_state_dict = shared_trunk_from_state_dict if shared else own_prior_from_state_dict
    prior: Prior = from_state_dict(state, **config["prior"], source=str(path))
    return prior


def model_file(i: int) -> str:
    """File of the i-th prior; those after the first are of classes that came later."""
    return f"model-{i}.safetensors" if i else MODEL


def push(
    model: FittedModel,
    repo_id: str,
    about: dict[str, Any],
    metrics: dict[str, float],
    *,
    private: bool,
    token: Token,
    commit_message: str,
) -> str:
    """Upload a model and its model card; the commit's address."""
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, about)
        card = model_card(model, repo_id, metrics)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message=commit_message
        )
    return str(commit.commit_url)


def model_card(model: FittedModel, repo_id: str, metrics: dict[str, float]) -> str:
    """The README of a repository: what it is, how good, how to use it."""
    names = [str(c) for c in (model.classes if model.class_names is None else model.class_names)]
    shown = ", ".join(names[:100]) + (", ..." if len(names) > 100 else "")
    shape = model.reader.image_shape
    kind, data = "tabular", "tables"
    if shape or model.reader.grid:
        kind, data = "image", "tokens of images"
    if shape:
        data = f"images of {shape[0]} x {shape[1]} x {shape[2]}"
    rows, cols = model.prior.grid
    n_parameters = sum(p.numel() for p in model.prior.parameters())
    lines = [
        "---",
        "library_name: skaocls",
        f"pipeline_tag: {kind}-classification",
        "tags: [any-order-autoregressive, generative-classifier, scikit-learn]",
        "---",
        "",
        f"# {repo_id.split('/')[-1]}",
        "",
        f"A generative classifier of {data}, made with skaocls {__version__}: an any-order "
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


def tokenizer_state(tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What describes a tokenizer as JSON, and its arrays."""
    name = type(tokenizer).__name__
    if TOKENIZERS.get(name) is not type(tokenizer):
        raise TypeError(
            f"{name} cannot be saved in this format, which knows {', '.join(TOKENIZERS)}. Use "
            'joblib.dump, or train on its tokens with tokenizer="precomputed".'
        )
    config = {"type": name, "params": {k: to_json(v) for k, v in tokenizer.get_params().items()}}
    if hasattr(tokenizer, "model_"):
        return config, tokenizer.model_.state_dict()
    config["attributes"] = {
        k: to_json(vars(tokenizer)[k]) for k in TOKENIZER_LEARNED if k in vars(tokenizer)
    }
    if hasattr(tokenizer, "codebook_"):
        if hasattr(tokenizer, "reader_"):  # not of tokens made elsewhere
            config["reader"] = to_json(vars(tokenizer.reader_))
        arrays = {
            name: getattr(tokenizer, name, None) for name in ("codebook_", "typical_patches_")
        }
        return config, {name: a for name, a in arrays.items() if a is not None}
    lists = [k for k in ("thresholds_", "bin_means_") if hasattr(tokenizer, k)]
    return config, {f"{k}.{i}": a for k in lists for i, a in enumerate(getattr(tokenizer, k))}


def restore_tokenizer(config: dict[str, Any], arrays: dict[str, Any]) -> Any:
    params = {k: from_json(v) for k, v in config["params"].items()}
    tokenizer = TOKENIZERS[config["type"]](**params)
    if "attributes" not in config:
        return tokenizer._set_weights(arrays)
    for name, value in config["attributes"].items():
        setattr(tokenizer, name, TOKENIZER_LEARNED[name](value))
    if "codebook_" in arrays:
        tokenizer.codebook_ = arrays["codebook_"].numpy()
        if "reader" in config:
            typical = arrays.get("typical_patches_")
            tokenizer.typical_patches_ = None if typical is None else typical.numpy()
            tokenizer.reader_ = restore_reader(config["reader"])
    elif arrays:
        for name in ("thresholds_", "bin_means_"):
            columns = range(tokenizer.n_features_in_)
            setattr(tokenizer, name, [arrays[f"{name}.{i}"].numpy() for i in columns])
    return tokenizer


def restore_reader(config: dict[str, Any]) -> Reader:
    values = dict(config)
    for name in ("declared_shape", "image_shape", "value_range", "grid"):
        values[name] = None if values.get(name) is None else tuple(values[name])
    if (names := values["feature_names"]) is not None:
        values["feature_names"] = np.array(names, dtype=object)
    return Reader(**values)


def labels_to_json(labels: np.ndarray) -> list[Any]:
    """Class labels as JSON knows them; their type tells how to read them."""
    if labels.dtype.kind in "mM":  # dates and durations
        labels = labels.astype(np.int64)
    values: list[Any] = to_json(labels)
    return values


def labels_from_json(values: list[Any], dtype: str) -> np.ndarray:
    stored = np.int64 if np.dtype(dtype).kind in "mM" else dtype
    return np.array(values, dtype=stored).astype(dtype)


def to_json(value: Any) -> Any:
    """A parameter or attribute in JSON's terms."""
    if isinstance(value, Prior):  # its weights are saved as the fitted prior's
        return value.sizes
    if isinstance(value, FrozenEstimator):
        value = value.estimator
    if isinstance(value, BaseEstimator):
        params = {k: to_json(v) for k, v in value.get_params(False).items()}
        return {"type": type(value).__name__, "params": params}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        return {k: to_json(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value == -np.inf:  # log of a class prior of 0
        return None
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    if isinstance(value, np.random.RandomState):
        return None
    return value


def from_json(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") in TOKENIZERS:
        params = {k: from_json(v) for k, v in value["params"].items()}
        return TOKENIZERS[value["type"]](**params)
    if isinstance(value, list):
        return np.array(value) if value and isinstance(value[0], list) else tuple(value)
    return value


def about_from_json(
    config: dict[str, Any], source: Any, params: Iterable[str], names: Iterable[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters, and what happened in `fit`, as they were given to :func:`save`.

    Raises
    ------
    ValueError
        If there are others than `params`, or they are damaged.
    """
    try:
        saved = {name: from_json(value) for name, value in config["params"].items()}
        history = {name: config["history"][name] for name in names if name in config["history"]}
        log_prior = [-np.inf if v is None else v for v in history["class_log_prior_"]]
        history["class_log_prior_"] = np.array(log_prior, dtype=np.float64)
        if history["class_log_prior_"].shape != (len(config["classes"]["values"]),):
            raise ValueError("class_log_prior_ is not one number for each class")
        if unknown := sorted(saved.keys() - set(params)):
            raise ValueError(f"parameters {unknown} are not known; upgrade skaocls")
    except Exception as exc:
        why = exc if isinstance(exc, ValueError) else repr(exc)
        raise ValueError(f"{source!s} holds no classifier that can be restored: {why}.") from exc
    return saved, history


TOKENIZER_LEARNED: dict[str, Callable[[Any], Any]] = {
    "n_codes_": int,
    "grid_": tuple,
    "patch_size_": tuple,
    "n_features_in_": int,
    "normalize_": lambda value: value,
    "reference_statistics_": lambda value: (
        None if value is None else np.array(value, dtype=np.float64)
    ),
}
