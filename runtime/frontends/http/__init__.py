"""The HTTP front-end: the KServe v2 REST endpoints, the generate extension, and the metrics port."""
