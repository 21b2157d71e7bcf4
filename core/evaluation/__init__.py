"""How much of the answers survives compression, and what it costs; no language model needed."""
