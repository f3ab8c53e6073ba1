"""Metrics of one model, or of one model beside another."""
