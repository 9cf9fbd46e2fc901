"""The picture report: one HTML file and one PNG, without a network."""
