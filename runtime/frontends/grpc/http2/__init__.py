"""HTTP/2 (RFC 9113) as far as a gRPC server needs it. Knows nothing of models or tensors."""
