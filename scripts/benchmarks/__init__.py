"""What `scripts/benchmark` measures: one file a subject, and what the subjects share."""
