"""Tutorials: scripts in cells, to be read from top to bottom and run as they are."""
