"""One run: generated, measured, kept in its folder."""
