"""Data before training: filters that say what they remove and why, and demonstrations made of documents by a model.

Each filter is a function of texts in a file of its own; `curate` runs them over a source, `demonstrate` is the
pipeline with a model.
"""
