"""Where a batch runs: model instances, the threads that run them, and the tensors of a batch."""
