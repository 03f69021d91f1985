"""A diffusion classifier with published DiT weights, which compares predictions of latent noise.

The networks are those of a `DiTPipeline` of diffusers. Each image has one noise for each step,
which all classes share, and the worst classes are dropped after some steps.

References
----------
Peebles and Xie, "Scalable diffusion models with transformers", arXiv 2212.09748.
Li et al., "Your diffusion model is secretly a zero-shot classifier", arXiv 2303.16203.
"""

from functools import partial

import numpy as np
import torch

from skaocls.devices import resolve_device, resolve_precision
from skaocls.images.reader import learn_reader

from ..claims.elimination import N_STEPS, evaluations, noise_errors, noise_seeds, search
from ..claims.flops import counted
from .folders import WORDNET_IDS, open_image
from .records import weights_hash

BATCH_SIZE = 64  # rows of a forward pass


def load_dit(args):
    """Load a `DiTPipeline` from the hub or a folder."""
    try:
        from diffusers import DiTPipeline
    except ImportError as exc:
        raise SystemExit(
            "--methods diffusion needs diffusers: pip install -c constraints.txt '.[benchmarks]'"
        ) from exc
    # low_cpu_mem_usage=True would need accelerate
    pipe = DiTPipeline.from_pretrained(
        args.dit, revision=args.dit_revision, low_cpu_mem_usage=False
    )
    prediction = pipe.scheduler.config.prediction_type
    if prediction != "epsilon":
        raise SystemExit(f"{args.dit} predicts {prediction!r}, but must predict 'epsilon' (noise).")
    return pipe.to(resolve_device(args.device))


def settings_of(pipe, args):
    """Return everything that predictions depend on."""
    settings = {name: getattr(args, name) for name in ("dit", "dit_revision", "stages", "decoding")}
    settings["precision"] = str(precision_of(args))
    return settings | {"weights": weights_hash(pipe.transformer, pipe.vae)}


def precision_of(args):
    """Return the dtype of the transformer's matrix products."""
    return resolve_precision(args.precision, resolve_device(args.device)) or torch.float32


@torch.inference_mode()
def latents(pipe, images):
    """Return the mean latents of images (n, height, width, 3) in [0, 1], on the CPU."""
    x = 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1
    codes = pipe.vae.encode(x.to(pipe.vae.device)).latent_dist.mean
    return codes.cpu() * pipe.vae.config.scaling_factor


@torch.inference_mode()
def class_errors(pipe, images, classes, stages, seed, precision=torch.float32):
    """Return the squared norm of the error in the noise, averaged over steps, (n, n_classes)."""
    dit, seeds, labels = pipe.transformer, noise_seeds(images, seed), torch.as_tensor(classes)
    x, config = latents(pipe, images), pipe.scheduler.config

    def timestep(t):
        return (t / N_STEPS * config.num_train_timesteps).long()

    def add_noise(x, t, noise):
        return pipe.scheduler.add_noise(x, noise, timestep(t))

    def predict(x, t, labels):
        with torch.autocast(dit.device.type, precision, enabled=precision != torch.float32):
            condition = {"timestep": timestep(t).to(dit.device)}
            condition["class_labels"] = labels.to(dit.device)
            out = dit(x.to(dit.device), **condition).sample
        # the second half of the channels, if any, contains variances
        return out[:, : dit.config.in_channels].float().cpu()

    def errors(alive, steps):
        return noise_errors(predict, add_noise, x, seeds, labels[alive], steps, BATCH_SIZE)

    return search(errors, stages, len(images), len(classes))


def score(pipe, args, classes, files, truth):
    """Return "1" for each image whose class with the smallest error is right, otherwise "0"."""
    side = pipe.transformer.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    files = [open_image(f) for f in files]
    images = learn_reader(files, "DiT", (side, side, 3), decoding=args.decoding).images()
    settings = args.stages, args.seed, precision_of(args)
    columns = class_errors(pipe, images, classes, *settings).argmin(1).numpy()
    return [{"error": [str(int(hit))]} for hit in truth[np.arange(len(files)), columns]]


def among(pipe, args, name, classes):
    """Return `score` among some ImageNet classes, and the operations for one image."""
    dit, side = pipe.transformer, pipe.transformer.config.sample_size
    unknown = [WORDNET_IDS[c] for c in classes if c >= dit.config.num_embeds_ada_norm]
    if unknown:
        raise SystemExit(f"The diffusion model does not know the class {unknown[0]}.")
    zero = torch.zeros(1, dtype=torch.long, device=dit.device)
    x = torch.zeros(1, dit.config.in_channels, side, side, device=dit.device)
    step = counted(partial(dit, x, timestep=zero, class_labels=zero))
    operations = evaluations(args.stages, len(classes)) * step
    return partial(score, pipe, args, classes), [operations]
