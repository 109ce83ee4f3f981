"""Estimators in training: the same start and the same order of the data. `race` is the entry point."""
