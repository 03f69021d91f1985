"""A diffusion classifier on published DiT weights: the class that best predicts noise in latents.

The parts are `diffusers`' own, as its `DiTPipeline` holds them. Each image has one noise for each
step, the same for all classes, and the worst classes leave on the way.

References
----------
Peebles and Xie, "Scalable diffusion models with transformers", arXiv 2212.09748.
Li et al., "Your diffusion model is secretly a zero-shot classifier", arXiv 2303.16203.
"""

from functools import partial

import numpy as np
import torch
from elimination import N_STEPS, evaluations, keys_of, noise_errors, search
from flops import counted
from folders import WORDNET_IDS, opened
from records import weights_hash

from skaocls.devices import resolve_device, resolve_precision
from skaocls.images.reader import learn_reader

ROWS_AT_ONCE = 64  # of a forward pass


def load_dit(args):
    """A `DiTPipeline` from the hub or a folder, ready to predict."""
    try:
        from diffusers import DiTPipeline
    except ImportError as exc:
        raise SystemExit(
            "--methods diffusion needs diffusers: pip install -c constraints.txt '.[benchmarks]'"
        ) from exc
    where = {"revision": args.dit_revision, "low_cpu_mem_usage": False}  # that needs accelerate
    pipe = DiTPipeline.from_pretrained(args.dit, **where)
    predicts = pipe.scheduler.config.prediction_type
    if predicts != "epsilon":
        raise SystemExit(f"{args.dit} predicts {predicts!r}; noise ('epsilon') is compared here.")
    return pipe.to(resolve_device(args.device))


def settings_of(pipe, args):
    """What answers depend on."""
    settings = {name: getattr(args, name) for name in ("dit", "dit_revision", "stages", "decoding")}
    settings["precision"] = str(precision_of(args))
    return settings | {"weights": weights_hash(pipe.transformer, pipe.vae)}


def precision_of(args):
    """Type of numbers in the transformer's products of matrices."""
    return resolve_precision(args.precision, resolve_device(args.device)) or torch.float32


@torch.inference_mode()
def latents(pipe, images):
    """Means of the latents of images (n, height, width, 3) in [0, 1], on the CPU."""
    x = 2 * torch.from_numpy(images).permute(0, 3, 1, 2) - 1
    codes = pipe.vae.encode(x.to(pipe.vae.device)).latent_dist.mean
    return codes.cpu() * pipe.vae.config.scaling_factor


@torch.inference_mode()
def class_errors(pipe, images, classes, stages, seed, precision=torch.float32):
    """Squared norm of the error in the noise, averaged over steps, (n, n_classes)."""
    dit, keys, labels = pipe.transformer, keys_of(images, seed), torch.as_tensor(classes)
    x, config = latents(pipe, images), pipe.scheduler.config

    def whole(t):
        return (t / N_STEPS * config.num_train_timesteps).long()

    def add_noise(x, t, noise):
        return pipe.scheduler.add_noise(x, noise, whole(t))

    def predict(x, t, labels):
        with torch.autocast(dit.device.type, precision, enabled=precision != torch.float32):
            given = {"timestep": whole(t).to(dit.device), "class_labels": labels.to(dit.device)}
            out = dit(x.to(dit.device), **given).sample
        # the other half of the channels, if there is one, are variances
        return out[:, : dit.config.in_channels].float().cpu()

    def errors(alive, steps):
        return noise_errors(predict, add_noise, x, keys, labels[alive], steps, ROWS_AT_ONCE)

    return search(errors, stages, len(images), len(classes))


def score(pipe, args, classes, files, truth):
    """For each image "1" if the class of the least error is right, else "0"."""
    side = pipe.transformer.config.sample_size * 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    images = [opened(f) for f in files]
    images = learn_reader(images, "DiT", (side, side, 3), decoding=args.decoding).images()
    settings = args.stages, args.seed, precision_of(args)
    found = class_errors(pipe, images, classes, *settings).argmin(1).numpy()
    return [{"error": [str(int(hit))]} for hit in truth[np.arange(len(files)), found]]


def among(pipe, args, name, classes):
    """`score` among these ImageNet classes, and operations for one image.

    Its latents are made once, and not counted.
    """
    dit, side = pipe.transformer, pipe.transformer.config.sample_size
    unknown = [WORDNET_IDS[c] for c in classes if c >= dit.config.num_embeds_ada_norm]
    if unknown:
        raise SystemExit(f"The diffusion model does not know the class {unknown[0]}.")
    zero = torch.zeros(1, dtype=torch.long, device=dit.device)
    x = torch.zeros(1, dit.config.in_channels, side, side, device=dit.device)
    step = counted(partial(dit, x, timestep=zero, class_labels=zero))
    operations = evaluations(args.stages, len(classes)) * step
    return partial(score, pipe, args, classes), [operations]
