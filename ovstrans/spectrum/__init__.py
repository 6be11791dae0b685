"""Spectra of layers: eigenvalues, power-law fits, metrics and freeze plans."""
