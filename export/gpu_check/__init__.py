"""`python -m export.gpu_check`: what there is to find out on the first GPU, as one report. Needs the `gpu` or `dev` extra."""
