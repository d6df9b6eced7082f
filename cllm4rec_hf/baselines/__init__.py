"""Competitors under the same evaluator."""
