"""The adapter as fused kernels, each beside a plain twin of the same name and signature.

Modules of this package itself need neither torch nor triton: tables and arithmetic. What needs them is in packages of its own,
which nothing imports by itself: `plain` and `adapter` (torch), `fused`, `parity` and `gates` (torch and triton).
"""
