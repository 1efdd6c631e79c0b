"""The embedded default: scikit-learn's handwritten digits, a trained DiT and a trained classifier."""
