"""The schema of all settings, and the recipes that are shipped."""
