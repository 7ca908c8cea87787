"""A Python model's instance in a process of its own: the process, what crosses to it, and what becomes of its end."""
