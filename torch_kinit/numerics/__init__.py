"""Exact arithmetic: Threefry and Philox, fused multiply-add, glibc's and XLA's functions, in torch operations."""
