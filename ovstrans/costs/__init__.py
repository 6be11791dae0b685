"""Costs of a model: parameters, multiply-accumulates of inference and training, measured latency."""
