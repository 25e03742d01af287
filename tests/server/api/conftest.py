"""A server around a scripted engine."""

from tests.support.clients.scripted_server import engine, running, server

__all__ = ["engine", "running", "server"]
