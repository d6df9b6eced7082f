"""Rows in, batches out: sources, preparation, documents, collators."""
