"""The adapter's operators as Triton kernels, each beside a reference of the same name and signature.

The modules of this package itself need neither torch nor triton: tables and arithmetic. Its packages need them, and nothing
imports a package by itself: `reference` and `adapter` need torch, `triton` and `compile_checks` need torch and triton.
"""
