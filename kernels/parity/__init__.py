"""Every fused operator against its plain twin, in Triton's interpreter on a CPU: cases, errors, tolerances."""
