"""Datasets: read images and labels from many layouts, check them, and store them as a manifest."""
