"""Curvature of a training objective, and bounds of it."""

from jaxunlearn.curvature.spectral import spectral_norm_bound as spectral_norm_bound
