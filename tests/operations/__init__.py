"""Programs of operations on real servers: Prometheus, and what reads the deployment's files."""
