"""What a bounded memory costs, beside the cache that grows."""
