"""Loops that run methods, and the ways to compose them."""
