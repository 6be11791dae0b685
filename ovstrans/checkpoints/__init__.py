"""Checkpoints: trained segmenters and pruned weights as files."""
