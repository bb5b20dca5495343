"""One HTML page about a run: limits, curves, stages, scores, and a slice viewer for each case."""
