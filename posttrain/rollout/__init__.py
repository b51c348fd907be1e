"""Rollouts: engines sample completions, episodes are played against environments, and trajectories become sequences."""
