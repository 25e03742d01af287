"""`python -m export.gpu_check`: everything to find out on the first GPU, in steps, as one report. Needs the `gpu` or `dev` extra."""
