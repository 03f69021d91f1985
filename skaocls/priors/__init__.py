"""Priors: networks that know log p(tokens | class, order), and their weights."""
