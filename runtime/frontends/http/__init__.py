"""The HTTP front-end: the KServe v2 REST endpoints and the metrics port, on uvicorn."""
