"""The statistics of both comparisons: figures with intervals, a test of zero bias, the best of several over seeds."""
