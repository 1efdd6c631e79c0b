"""The embedded model: a DiT on handwritten digits."""
