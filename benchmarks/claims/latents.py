"""Latents of images: the whitened principal components of their patches."""

import numpy as np
from sklearn.decomposition import PCA


class PatchLatents:
    """Linear encoder of patches, for diffusion in latents instead of pixels.

    Parameters
    ----------
    patch_size : int
        Side of a patch in pixels; it must divide the sides of the images.
    n_components : int
        Number of components per patch.
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
        """Return latents (n, rows, cols, n_components) with mean 0.5 and standard deviation 0.5."""
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
