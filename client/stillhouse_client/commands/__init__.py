"""The commands of the `stillhouse` command line, one module per noun."""
