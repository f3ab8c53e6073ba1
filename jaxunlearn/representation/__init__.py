"""Methods that act on features or on a head, and leave the rest of a model as it is; or that shape features."""
