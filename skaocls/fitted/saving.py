"""Save and load fitted models as JSON and safetensors files. These formats cannot contain code.

The folder of a model contains ``config.json`` (classes, shapes and parameters),
``model.safetensors`` (weights of the prior) and ``tokenizer.safetensors`` (arrays of the
tokenizer, and the statistics of the classes). Priors that `partial_fit` has added are in
``model-1.safetensors``, ``model-2.safetensors`` and so on. An older file is only replaced when the
new file is complete.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.frozen import FrozenEstimator

from skaocls.devices import own_torch_state
from skaocls.files import find_file, read_state_dict, tensor_writer, write_all
from skaocls.fitted.model import CLASS_ARRAYS, FittedModel
from skaocls.fitted.pretrained import PUBLISHED
from skaocls.fitted.saving_checks import Config, check_config, check_model
from skaocls.images.reader import Reader
from skaocls.parameter_objects import FineTuning, PretrainedWeights
from skaocls.priors.loading import own_prior_from_state_dict, shared_trunk_from_state_dict
from skaocls.priors.transformer import Prior
from skaocls.tokenizers import (
    LlamaGenTokenizer,
    MaskGITTokenizer,
    PatchTokenizer,
    PrecomputedTokenizer,
    QuantileTokenizer,
)
from skaocls.version import __version__

FORMAT = 1
MAX_CONFIG_BYTES = 2**26
CONFIG, MODEL, TOKENIZER = "config.json", "model.safetensors", "tokenizer.safetensors"
STATISTICS = "class_statistics"  # name of FittedModel.statistics in the file TOKENIZER
SHAPES = ("declared_shape", "image_shape", "value_range", "grid")  # tuples in a Reader
STORED_SIZES = ("grid", "n_head", "num_classes")  # parameters of PretrainedWeights
Source = str | os.PathLike[str]
Token = str | bool | None
TOKENIZERS: dict[str, type[BaseEstimator]] = {
    cls.__name__: cls
    for cls in (
        LlamaGenTokenizer,
        MaskGITTokenizer,
        PatchTokenizer,
        PrecomputedTokenizer,
        QuantileTokenizer,
    )
}
PARAMETER_OBJECTS = TOKENIZERS | {cls.__name__: cls for cls in (FineTuning, PretrainedWeights)}
# Fitted attributes of tokenizers: values and their types, then arrays, then lists of arrays
TOKENIZER_VALUES: dict[str, Callable[[Any], object]] = {
    "n_codes_": int,
    "grid_": tuple,
    "patch_size_": tuple,
    "n_features_in_": int,
    "normalize_": lambda value: value,
    "reference_statistics_": lambda value: None if value is None else np.array(value, np.float64),
}
TOKENIZER_ARRAYS = ("codebook_", "typical_patches_")
TOKENIZER_LISTS = ("thresholds_", "bin_means_")
CARD = """---
library_name: skaocls
pipeline_tag: {task}-classification
tags: [any-order-autoregressive, generative-classifier, scikit-learn]
---

# {title}

This generative classifier of {data} was trained with skaocls {version}. It is an any-order
autoregressive transformer with {n_parameters:,} parameters for a grid of {grid} tokens. It averages
its predictions over token orders ([arXiv 2603.19122](https://arxiv.org/abs/2603.19122)).

```python
from skaocls import AnyOrderARClassifier

clf = AnyOrderARClassifier.from_pretrained("{repo_id}")
clf.predict_proba(X)
```

Classes ({n_classes}): {classes}
"""


@own_torch_state()
def save(model: FittedModel, folder: Source, extra: Config | None = None) -> None:
    """Save a model to a folder. If the folder does not exist, `save` creates it.

    `extra` contains additional entries for the configuration. :func:`to_json` must support their
    values. If the tokenizer's class is not part of this library, `save` raises a TypeError.
    """
    tokenizer, arrays = tokenizer_state(model.tokenizer)
    if model.statistics is not None:
        arrays = arrays | {STATISTICS: model.statistics}
    config: Config = {"format": FORMAT, "library": "skaocls", "version": __version__}
    config |= {name: to_json(value) for name, value in (extra or {}).items()}
    labels, dtype = model.classes, model.classes.dtype
    if dtype.kind in "mM":  # save dates and durations as integers
        labels = labels.astype(np.int64)
    config["classes"] = {"dtype": dtype.str, "values": to_json(labels)}
    config |= {name: to_json(getattr(model, name)) for name in CLASS_ARRAYS}
    config |= {"order_seed": model.order_seed, "views": model.views}
    config["reader"] = to_json(vars(model.reader))
    config["prior"] = {"grid": list(model.prior.grid), "n_head": model.prior.transformer.n_head}
    config["added_priors"] = len(model.priors) - 1
    config["tokenizer"] = tokenizer
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    writers: dict[str, Callable[[str], object]] = {
        model_file(i): tensor_writer(prior.state_dict()) for i, prior in enumerate(model.priors)
    }
    writers[TOKENIZER] = tensor_writer(arrays)
    # write the configuration last: if a folder has a configuration, all other files are there
    writers[CONFIG] = lambda path: Path(path).write_text(text, encoding="utf-8")
    write_all(folder, writers)


@own_torch_state(grad=True)
def load(weights: PretrainedWeights, *, token: Token = None) -> tuple[FittedModel, Config] | None:
    """Return the saved model and its configuration, or None if `weights` is not a saved model."""
    source = weights.source
    if weights.filename is not None or source in PUBLISHED:
        return None

    def find(name: str) -> Path:
        return find_file(source, name, revision=weights.revision, token=token)

    def tensors(name: str) -> tuple[dict[str, torch.Tensor], str]:
        path = find(name)
        return read_state_dict(path), str(path)

    try:
        config = read_config(find(CONFIG))
    except FileNotFoundError:
        return None
    if config is None:
        return None
    if given := [name for name in STORED_SIZES if getattr(weights, name) is not None]:
        raise ValueError(
            f"{source!s} contains a saved classifier, whose prior has sizes of its own. Remove "
            f"{', '.join(given)} from PretrainedWeights."
        )
    with explained(source, "model"):
        check_config(config)
        arrays: Config = {
            name: None if config[name] is None else np.array(config[name]) for name in CLASS_ARRAYS
        }
        dtype = config["classes"]["dtype"]
        stored = np.int64 if np.dtype(dtype).kind in "mM" else dtype
        tokenizer_arrays = tensors(TOKENIZER)[0]
        statistics = tokenizer_arrays.pop(STATISTICS, None)  # missing in older files
        model = FittedModel(
            reader=restore_reader(config["reader"]),
            tokenizer=restore_tokenizer(config["tokenizer"], tokenizer_arrays),
            priors=tuple(
                restore_prior(config["prior"], *tensors(model_file(i)))
                for i in range(1 + config["added_priors"])
            ),
            classes=np.array(config["classes"]["values"], dtype=stored).astype(dtype),
            order_seed=config["order_seed"],
            views=config["views"],
            statistics=None if statistics is None else statistics.numpy(),
            **arrays,
        )
        check_model(model)
    return model, config


def read_config(path: Path) -> Config | None:
    """Return the configuration in a file, or None if skaocls has not written the file."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"the file is larger than {MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"{path} is not readable JSON: {exc}.") from exc
    if not isinstance(config, dict) or config.get("library") != "skaocls":
        return None
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path} was written by skaocls {config.get('version')} in format "
            f"{config.get('format')!r}; the installed version {__version__} reads format {FORMAT}. "
            "Install a version of skaocls that reads the format of the file."
        )
    return config


@contextmanager
def explained(source: Source, content: str) -> Iterator[None]:
    """If a damaged configuration causes an error, raise a ValueError with the name `source`."""
    try:
        yield
    except OSError:
        raise
    except Exception as exc:
        reason = exc if isinstance(exc, ValueError) else repr(exc)
        raise ValueError(f"{source!s} does not contain a valid {content}: {reason}.") from exc


def read_parameters(
    config: Config, source: Source, names: Iterable[str], attributes: Iterable[str]
) -> tuple[Config, Config]:
    """Return the saved parameters and the saved fitted attributes of an estimator.

    `names` are the names of all parameters of the estimator. If the configuration contains any
    other parameter, the function raises a ValueError.
    """
    with explained(source, "classifier"):
        params = {name: from_json(value) for name, value in config["params"].items()}
        history = config["history"]
        found = {name: history[name] for name in attributes if name in history}
        if unknown := sorted(params.keys() - set(names)):
            raise ValueError(f"the parameters {unknown} are unknown")
    return params, found


def push(
    model: FittedModel,
    repo_id: str,
    extra: Config,
    metrics: dict[str, float],
    *,
    private: bool,
    token: Token,
) -> str:
    """Upload a model and its model card, and return the URL of the commit."""
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder, extra)
        card = model_card(model, repo_id, metrics)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, commit_message="Add classifier"
        )
    return str(commit.commit_url)


def model_card(model: FittedModel, repo_id: str, metrics: dict[str, float]) -> str:
    labels = model.classes if model.class_names is None else model.class_names
    shape, grid = model.reader.image_shape, model.prior.grid
    data = "tokens of images" if model.reader.grid else "tables"
    if shape:
        data = f"images of {shape[0]} x {shape[1]} x {shape[2]}"
    card = CARD.format(
        task="tabular" if data == "tables" else "image",
        title=repo_id.split("/")[-1],
        data=data,
        version=__version__,
        n_parameters=sum(p.numel() for p in model.prior.parameters()),
        grid=f"{grid[0]} x {grid[1]}",
        repo_id=repo_id,
        n_classes=len(labels),
        classes=", ".join(map(str, labels[:100])) + (", ..." if len(labels) > 100 else ""),
    )
    if metrics:
        card += "\n| metric | value |\n|---|---|\n"
        card += "".join(f"| {name} | {value:.4f} |\n" for name, value in metrics.items())
    return card


def model_file(i: int) -> str:
    return f"model-{i}.safetensors" if i else MODEL


def restore_prior(sizes: Config, state: dict[str, torch.Tensor], source: str) -> Prior:
    shared = "head.classes.weight" in state
    from_state_dict = shared_trunk_from_state_dict if shared else own_prior_from_state_dict
    prior: Prior = from_state_dict(state, **sizes, source=source)
    return prior


def tokenizer_state(tokenizer: TransformerMixin) -> tuple[Config, dict[str, ArrayLike]]:
    """Return a description of the tokenizer as a JSON object, and the tokenizer's arrays."""
    name = type(tokenizer).__name__
    if TOKENIZERS.get(name) is not type(tokenizer):
        raise TypeError(
            f"{name} cannot be saved in this format, which supports {', '.join(TOKENIZERS)}. Use "
            'joblib.dump instead, or train on saved tokens with tokenizer="precomputed".'
        )
    config = to_json(tokenizer)
    if hasattr(tokenizer, "model_"):
        return config, tokenizer.model_.state_dict()
    fitted = vars(tokenizer)
    config["attributes"] = {k: to_json(fitted[k]) for k in TOKENIZER_VALUES if k in fitted}
    if "reader_" in fitted:
        config["reader"] = to_json(vars(tokenizer.reader_))
    arrays = {k: fitted[k] for k in TOKENIZER_ARRAYS if fitted.get(k) is not None}
    lists = {k: fitted[k] for k in TOKENIZER_LISTS if k in fitted}
    return config, arrays | {f"{k}.{i}": a for k, v in lists.items() for i, a in enumerate(v)}


def restore_tokenizer(config: Config, arrays: dict[str, torch.Tensor]) -> TransformerMixin:
    if config["type"] not in TOKENIZERS:
        raise ValueError(f"the tokenizer {config['type']!r} is unknown")
    tokenizer = from_json({"type": config["type"], "params": config["params"]})
    if "attributes" not in config:
        return tokenizer._set_weights(arrays)
    for name, value in config["attributes"].items():
        setattr(tokenizer, name, TOKENIZER_VALUES[name](value))
    if "reader" in config:
        tokenizer.reader_ = restore_reader(config["reader"])
        tokenizer.typical_patches_ = None
    for name in TOKENIZER_ARRAYS:
        if name in arrays:
            setattr(tokenizer, name, arrays[name].numpy())
    for name in TOKENIZER_LISTS:
        if f"{name}.0" in arrays:
            columns = range(tokenizer.n_features_in_)
            setattr(tokenizer, name, [arrays[f"{name}.{i}"].numpy() for i in columns])
    return tokenizer


def restore_reader(config: Config) -> Reader:
    values = config | {k: None if config[k] is None else tuple(config[k]) for k in SHAPES}
    if (names := values["feature_names"]) is not None:
        values["feature_names"] = np.array(names, dtype=object)
    return Reader(**values)


def to_json(value: object) -> Any:
    """Convert the value of a parameter or attribute to a JSON value."""
    if isinstance(value, Prior):  # only the sizes: `save` writes the weights
        return to_json(value.sizes)
    if isinstance(value, FrozenEstimator):
        value = value.estimator
    if isinstance(value, BaseEstimator):
        params = {k: to_json(v) for k, v in value.get_params(False).items()}
        return {"type": type(value).__name__, "params": params}
    if hasattr(value, "__array__"):  # arrays, NumPy's scalars, tensors and pandas' series
        value = np.asarray(value).tolist()
    if isinstance(value, (list, tuple, range)):
        return [to_json(v) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, dict):  # the names of a JSON object would turn other keys into strings
        return {"type": "dict", "items": [[to_json(k), to_json(v)] for k, v in value.items()]}
    if isinstance(value, (torch.device, os.PathLike)):
        return str(value)
    if isinstance(value, np.random.RandomState):
        return None
    if not isinstance(value, (str, int, float, type(None))):
        raise TypeError(
            f"{value!r:.200} of type {type(value).__name__} cannot be saved in this format. Use "
            "joblib.dump instead, or replace it by numbers, strings, lists or dicts."
        )
    return value


def from_json(value: Any) -> Any:
    """Convert the result of :func:`to_json` back to the value of a parameter."""
    if isinstance(value, dict) and value.get("type") == "dict":
        return {from_json(k): from_json(v) for k, v in value["items"]}
    if isinstance(value, dict) and value.get("type") in PARAMETER_OBJECTS:
        params = {k: from_json(v) for k, v in value["params"].items()}
        return PARAMETER_OBJECTS[value["type"]](**params)
    if isinstance(value, list):
        return np.array(value) if value and isinstance(value[0], list) else tuple(value)
    return value
