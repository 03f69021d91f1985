"""Code that trains priors. The training loop is in :mod:`skaocls.training.loop`."""
