"""Language students: losses, data, training, evaluation and the recipe that joins them."""
