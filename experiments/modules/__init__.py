"""Models and data of a user's own, for `experiments/unlearn_checkpoint.py --module`."""
