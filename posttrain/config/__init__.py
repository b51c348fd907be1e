"""Recipes: YAML into closed models, with overrides and the provenance of every value."""

from posttrain.config.schema import Recipe

__all__ = ["Recipe"]
