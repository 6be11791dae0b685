"""Reports of what targets cost: the JSON itself, and the tables and pictures made of it."""
