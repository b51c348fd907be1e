"""Benchmarks, their statistics, and the report of a run."""
