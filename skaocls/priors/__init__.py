"""Priors: neural networks that compute log p(tokens | class, order), and their weights."""
