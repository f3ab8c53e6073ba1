"""Metrics that need many models of each kind: attacks on single examples, distances of distributions, memorisation."""
