"""Validation data: choose the samples to hold out, and score them during training."""

import math
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.utils import gen_batches

from skaocls.distributed import all_reduce_sum, shard_rows, world_size
from skaocls.training.config import TrainingConfig
from skaocls.training.loss import TrainingBatch, TrainingLoss

BATCH_SIZE = 256  # images per forward pass


class Validation(NamedTuple):
    """Validation data: codes (n, n_tokens), labels (n,), and sample weights (n,) or None."""

    codes: np.ndarray
    labels: np.ndarray
    weights: np.ndarray | None = None


def split_validation(
    labels: np.ndarray, config: TrainingConfig, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray | None]:
    """Split the samples, stratified by class. Return the training rows and the held-out rows.

    If no samples are held out, the second result is None. If a class has only one sample, this
    sample is never held out.
    """
    rows, n_held_out = np.arange(len(labels)), held_out_size(labels, config)
    if not n_held_out:
        return rows, None
    is_single = np.bincount(labels)[labels] == 1
    candidates = rows[~is_single]
    train, held_out = train_test_split(
        candidates, test_size=n_held_out, stratify=labels[candidates], random_state=rng
    )
    return np.concatenate([train, rows[is_single]]), held_out


def held_out_size(labels: np.ndarray, config: TrainingConfig) -> int:
    """Return the number of samples to hold out. If there are too few, raise a ValueError."""
    if not (config.early_stopping or config.hold_out):
        return 0
    option = "early_stopping=True" if config.early_stopping else 'temperature="auto"'
    counts = np.bincount(labels)
    n_classes, n_candidates = (counts > 1).sum(), counts[counts > 1].sum()
    if not n_candidates:
        raise ValueError(
            f"{option} holds out samples for validation. Every class needs at least 2 samples; "
            f"{len(labels)} classes have one."
        )
    n_held_out = math.ceil(config.validation_fraction * len(labels))
    if not n_classes <= n_held_out <= n_candidates - n_classes:
        raise ValueError(
            f"{option} with validation_fraction={config.validation_fraction} holds out "
            f"{n_held_out} of {len(labels)} samples. {n_classes} classes have several samples. "
            "The training data and the held-out data each need a sample of each of these classes, "
            f"so {n_classes} to {n_candidates - n_classes} samples can be held out. Pass another "
            "validation_fraction or more samples."
        )
    return n_held_out


@torch.no_grad()
def validation_score(
    loss: TrainingLoss, data: Validation, orders: np.ndarray, autocast: torch.dtype | None
) -> float:
    """Return the log-likelihood per token, averaged over the validation data and the orders."""
    codes, labels = data.codes, data.labels
    weights = np.ones(len(codes)) if data.weights is None else data.weights
    total_weight = weights.sum() * len(orders)
    if world_size() > 1:
        rows, valid = shard_rows(len(codes))
        codes, labels, weights = codes[rows], labels[rows], weights[rows]
        weights = weights if valid is None else weights * valid.numpy()
    loss.eval()
    device = loss.prior.device
    total = 0.0
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        for part in gen_batches(len(codes), BATCH_SIZE):
            batch_codes = torch.as_tensor(codes[part]).long().to(device)
            batch_labels = torch.as_tensor(labels[part]).to(device)
            batch_weights = torch.as_tensor(weights[part]).float().to(device)
            for order in torch.as_tensor(orders).to(device):
                expanded = order.expand_as(batch_codes)
                batch = TrainingBatch(batch_codes, expanded, batch_labels, batch_weights)
                total -= loss(batch).item() * len(batch_codes)
    total_all = all_reduce_sum(torch.tensor(total, dtype=torch.float64))
    return total_all.item() / float(total_weight)
