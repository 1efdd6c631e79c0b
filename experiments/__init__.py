"""The experiment layer: configs, backends, runs, tables. It uses `hicache` and `evaluation`, never the reverse."""
