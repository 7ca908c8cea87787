"""The gRPC front-end: the KServe v2 service, health and reflection, on gRPC's C-core."""
