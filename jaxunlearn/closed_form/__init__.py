"""One-shot updates: no training loop."""
