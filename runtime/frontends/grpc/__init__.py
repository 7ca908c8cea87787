"""The gRPC front-end: the KServe v2 service, health and reflection, over our own HTTP/2."""
