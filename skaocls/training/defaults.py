"""Values that replace "auto" in training parameters, and the size of micro-batches."""

import numpy as np

from skaocls.priors.shared_trunk import SharedTrunkPrior
from skaocls.priors.transformer import Prior
from skaocls.training.loss import number_of_rivals

# Number of epochs. On two CPU cores, training takes about one minute for up to 1000 images. This
# time grows more slowly than the number of images: for 10,000 images, it is eight minutes
# (benchmarks/speed/default_settings.py). Tables have no augmented views and overfit sooner than
# images. Therefore, tables are trained for fewer epochs (benchmarks/quality/tables.py).
MAX_EPOCHS, MAX_EPOCHS_OF_TABLES, MIN_EPOCHS = 120, 30, 10
BUDGET_OPERATIONS, BUDGET_IMAGES, BUDGET_EXPONENT = 3.4e12, 1000, 0.9
# Time of the class head for one rival class, divided by the time of its largest matrix product
# (benchmarks/speed/training_steps.py)
RIVAL_OVERHEAD = 1.4

# Batch size. If images have many tokens, training with batches of about 1024 tokens needs only a
# quarter of the epochs that training with batches of 64 images needs
# (benchmarks/speed/default_settings.py). If a batch has far fewer than 1024 tokens, the gradients
# are noisy.
BATCH_TOKENS = 1024
MIN_BATCH, MAX_BATCH = 16, 64
MIN_STEPS_PER_EPOCH, MIN_STEPS_PER_EPOCH_OF_TABLES = 8, 32

# Learning rates. The learning rate of a new prior is 0.4 / dim. For the published dim of 1024, this
# gives the published learning rate of 4e-4. benchmarks/quality/digits.py tests the rate for small
# priors. Fine-tuning multiplies the rate by a factor (benchmarks/quality/finetuning.py). Short
# trainings with Muon on images need a higher rate (benchmarks/quality/recipe.py).
RATE_TIMES_DIM = 0.4
MUON_RATE = 3.0
FINETUNING_RATE = {"full": 0.1, "lora": 0.5, "class_embedding": 5.0, "head": 1.0}

# Muon is used only if training takes fewer than 50 epochs. For 50 or more epochs, AdamW is at least
# as good as Muon (benchmarks/quality/optimizers.py, benchmarks/quality/tables.py).
MUON_MAX_EPOCHS = 50

# Weight of the posterior in the loss (benchmarks/quality/posterior.py). If an image has fewer than
# 48 tokens, the weight is proportional to the number of tokens, because the log-likelihood is a sum
# over tokens.
POSTERIOR_WEIGHT, FULL_WEIGHT_TOKENS = 5.0, 48
POSTERIOR_WEIGHT_PER_COLUMN = 1 / 30  # weight for each column of a table

# Limit in bytes for the activations of a micro-batch. Batches above the limit are split into
# micro-batches, whose gradients are summed. Results do not depend on the machine, because the limit
# is fixed. New priors of default size stay below the limit. When RandAR-L (343 million parameters)
# is fine-tuned, a micro-batch has four images.
ACTIVATION_BUDGET = 2**32


def default_batch_size(n_samples: int, n_tokens: int, tabular: bool = False) -> int:
    steps = MIN_STEPS_PER_EPOCH_OF_TABLES if tabular else MIN_STEPS_PER_EPOCH
    return int(np.clip(min(n_samples // steps, BATCH_TOKENS // n_tokens), MIN_BATCH, MAX_BATCH))


def default_max_iter(
    n_samples: int, prior: Prior, posterior_weight: float = 0.0, tabular: bool = False
) -> int:
    """Return the number of epochs that the budget of operations allows, between 10 and 120.

    For tables, the maximum is 30 epochs.
    """
    budget = BUDGET_OPERATIONS * max(1.0, n_samples / BUDGET_IMAGES) ** BUDGET_EXPONENT
    n_rivals = number_of_rivals(prior.num_classes) if posterior_weight else 0
    epochs = budget / (n_samples * training_operations(prior, n_rivals))
    return int(np.clip(epochs, MIN_EPOCHS, MAX_EPOCHS_OF_TABLES if tabular else MAX_EPOCHS))


def training_operations(prior: Prior, n_rivals: int = 0) -> float:
    """Estimate how many floating-point operations one training step needs per image."""
    n, transformer = prior.n_tokens, prior.transformer
    n_block = sum(p.numel() for p in transformer.layers.parameters())
    lookup_tables = (prior.class_table, transformer.tok_embeddings.weight)
    n_head = sum(p.numel() for p in prior.parameters()) - n_block
    n_head -= sum(table.numel() for table in lookup_tables)
    if isinstance(prior, SharedTrunkPrior):  # only the codes in the group of the target are tilted
        n_head -= prior.head.tokens.numel() - prior.head.tokens[0].numel()
    # the sequence also contains a position-instruction token before each image token
    attention = 4 * (2 * n) ** 2 * prior.dim * len(transformer.layers)
    one_class = float(3 * (2 * (2 * n * n_block + n * n_head) + attention))
    if not isinstance(prior, SharedTrunkPrior):
        return one_class * (1 + n_rivals)
    rival = 3 * 2 * n * prior.head.project.weight.numel()
    return one_class + n_rivals * RIVAL_OVERHEAD * rival


def default_learning_rate(
    dim: int, mode: str | None, muon: bool = False, tabular: bool = False
) -> float:
    """Return the peak learning rate. `mode` is the fine-tuning mode, or None for a new prior."""
    factor = FINETUNING_RATE[mode] if mode else 1.0
    if muon and mode is None and not tabular:
        factor *= MUON_RATE
    return factor * RATE_TIMES_DIM / dim


def default_posterior_weight(prior: Prior, mode: str | None, tabular: bool = False) -> float:
    """Return the weight of the posterior in the training loss.

    `mode` is the fine-tuning mode, or None for a new prior. The weight is 0
    unless the prior is a `SharedTrunkPrior` and all weights are trained. For any other prior, the
    posterior would need one more forward pass per image for every rival class.
    """
    if mode not in (None, "full") or not isinstance(prior, SharedTrunkPrior):
        return 0.0
    if tabular:
        return min(POSTERIOR_WEIGHT, POSTERIOR_WEIGHT_PER_COLUMN * prior.n_tokens)
    return POSTERIOR_WEIGHT * min(1.0, prior.n_tokens / FULL_WEIGHT_TOKENS)


def uses_muon(
    prior: Prior, mode: str | None, max_iter: int, n_views: int, tabular: bool = False
) -> bool:
    """Return whether Muon trains the prior. `mode` is the fine-tuning mode or None.

    Muon is not used if each image has only one view, because Muon then overfits. Published weights
    were trained with AdamW, so AdamW is also used to fine-tune published weights.
    """
    own_weights = mode is None or (mode == "full" and isinstance(prior, SharedTrunkPrior))
    return own_weights and (n_views > 1 or tabular) and max_iter < MUON_MAX_EPOCHS


def micro_batch_size(prior: Prior, n_rivals: int = 0) -> int:
    """Return the number of images (at least one) whose activations fit into the budget."""
    return max(1, int(ACTIVATION_BUDGET // activation_bytes(prior, n_rivals)))


def activation_bytes(prior: Prior, n_rivals: int = 0) -> float:
    """Estimate how many bytes of float32 activations the backward pass needs per image."""
    n, transformer = prior.n_tokens, prior.transformer
    hidden = transformer.blocks[0].feed_forward.w1.weight.shape[0]
    blocks = len(transformer.blocks) * (2 * n - 1) * (10 * prior.dim + 4 * hidden)
    if isinstance(prior, SharedTrunkPrior):
        head = n * (4 * prior.vocab_size + 5 * (1 + n_rivals) * prior.head.project.weight.shape[1])
        return 4 * (blocks + head)
    return 4 * (1 + n_rivals) * (blocks + n * prior.vocab_size)
