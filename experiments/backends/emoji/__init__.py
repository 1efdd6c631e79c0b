"""The second embedded model: text to image with FLUX's architecture, on captioned emoji."""
