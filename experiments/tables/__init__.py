"""Tables of runs: pure functions from presets and run folders to markdown, CSV, LaTeX and a plot."""
