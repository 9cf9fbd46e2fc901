"""Language models for the services that run or train them: files, loading, tokens, packing."""
