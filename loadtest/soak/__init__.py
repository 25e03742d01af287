"""A long run with every kind of client, while faults are injected: what fails, what is lost, what leaks."""
