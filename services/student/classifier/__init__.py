"""Image classifiers that learn from a teacher (Hinton et al., arXiv 1503.02531)."""
