"""What every method shares: tensors and their ledger, granularity, metrics, trace."""
