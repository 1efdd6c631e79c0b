"""Many runs: planned, executed, watched, collected."""
