"""Benchmarks of skaocls; README.md describes how to run them."""
