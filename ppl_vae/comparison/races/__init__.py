"""Estimators while they train: the same start, the same order of the data; `race` begins it."""
