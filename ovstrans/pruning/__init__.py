"""Pruning: how masks are made, by scores, schedules and rounds of distillation."""
