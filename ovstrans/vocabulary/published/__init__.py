"""Vocabulary files of published datasets, one TOML file each. The README.md in this folder names their sources."""
