"""From rows to tensors: sources, formats, the shuffled stream, chat rendering and collation."""
