"""Parts of `experiments/benchmarks/curvature.py`, one file for each."""
