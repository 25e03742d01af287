"""Clients that people use, against a server: a lane of its own, `make test-clients`."""
