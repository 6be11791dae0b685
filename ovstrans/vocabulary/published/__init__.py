"""The vocabularies of published datasets, one TOML file each; README.md here says where they are from."""
