"""The contract over HTTP: JSON from its annotations, events, upload, thumbnails and the pages."""
