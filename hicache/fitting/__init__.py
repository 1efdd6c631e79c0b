"""What is fitted before a generation: calibrated plans and weights, and the Gaussian model of a noise schedule."""
