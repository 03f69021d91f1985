"""Training a prior. :mod:`skaocls.training.loop` contains the training loop."""
