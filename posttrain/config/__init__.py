"""Recipes: YAML into closed models, with overrides and the provenance of every value."""

from posttrain.config.load import LoadedRecipe, load_recipe
from posttrain.config.overrides import parse_settings
from posttrain.config.resolved import differences, write_resolved
from posttrain.config.schema import Recipe

__all__ = ["LoadedRecipe", "Recipe", "differences", "load_recipe", "parse_settings", "write_resolved"]
