"""Attacks by whoever sees a model before and after a request, or may train it: what the update itself gives away."""
