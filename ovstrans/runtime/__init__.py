"""Execution of pruned image encoders on a CPU that skips zero weights: C kernels, packed weights, the executor."""
