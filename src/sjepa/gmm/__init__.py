"""Diagonal Gaussian mixtures: posteriors, sufficient statistics, fitting."""
