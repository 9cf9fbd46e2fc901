"""Language models as teachers: scoring, sparse targets, text."""
