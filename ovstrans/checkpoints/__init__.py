"""Checkpoints: trained segmenters as files."""
