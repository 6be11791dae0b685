"""Segmentation frameworks: the contract they fulfil, their building blocks, and the registry that builds them."""
