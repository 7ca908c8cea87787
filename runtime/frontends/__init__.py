"""The wire: HTTP, gRPC and metrics servers over `Server.submit`."""
