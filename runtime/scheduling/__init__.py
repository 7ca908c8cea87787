"""When a request runs and with which others: pure deciders, and the thin drivers that carry them out."""
