"""What is measured on un-cached runs before a method can use it: plans, curves, the best sigma."""
