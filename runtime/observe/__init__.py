"""True figures: statistics counted by the owners of the work, read out as JSON, protobuf and Prometheus text."""
