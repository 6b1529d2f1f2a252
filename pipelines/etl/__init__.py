"""Raw log to transitions, as DataFrame -> DataFrame functions over NumPy kernels."""
