"""The models on a GPU: the contracts of `models.backends` again, over memory, streams and graphs. Needs the `gpu` extra."""
