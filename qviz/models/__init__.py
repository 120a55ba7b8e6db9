"""Real models: loading, capturing inputs, perplexity."""
