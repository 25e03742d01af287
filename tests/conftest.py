"""Settings of the whole suite."""

from hypothesis import settings

# No example fails for being slow on a busy machine, and every run sees the same examples.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
