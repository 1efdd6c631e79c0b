"""Agreement with published packages that need an environment of their own."""
