"""Parts of `experiments/benchmarks/gpu.py`, one file each; importing them needs only what an accelerator machine has."""
