"""Latents of images: the whitened principal components of their patches."""

import numpy as np
from sklearn.decomposition import PCA


class PatchLatents:
    """A linear encoder, patch by patch, for a diffusion in latents instead of pixels.

    Parameters
    ----------
    patch_size : int
        Pixels along each side of a patch; the images' sides are multiples of it.
    n_components : int
        Numbers that are kept of a patch.
    """

    def __init__(self, patch_size, n_components):
        self.patch_size = patch_size
        self.n_components = n_components

    def fit(self, images):
        """Learn the components from images (n, height, width, channels)."""
        patches = self.patches(images)
        self.pca = PCA(self.n_components, whiten=True, svd_solver="covariance_eigh")
        self.pca.fit(patches.reshape(-1, patches.shape[-1]))
        return self

    def transform(self, images):
        """Latents (n, rows, cols, n_components) of unit variance about 0.5, as pixels might be."""
        patches = self.patches(images)
        latents = self.pca.transform(patches.reshape(-1, patches.shape[-1]))
        return (latents.reshape(*patches.shape[:3], -1) / 2 + 0.5).astype(np.float32)

    def patches(self, images):
        n, height, width, channels = images.shape
        p = self.patch_size
        cells = np.asarray(images, np.float32).reshape(
            n, height // p, p, width // p, p, channels
        )  # fmt: skip
        return cells.transpose(0, 1, 3, 2, 4, 5).reshape(n, height // p, width // p, -1)
