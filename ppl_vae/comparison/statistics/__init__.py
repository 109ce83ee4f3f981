"""What both comparisons test with: figures with intervals, zero bias, the best of several over seeds."""
