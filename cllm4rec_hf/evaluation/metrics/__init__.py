"""Metrics over ranked lists, one a file."""
