"""Fuzzing of every reader of files: `python -m tests.benchmarks.fuzz READER --inputs 20000`."""
