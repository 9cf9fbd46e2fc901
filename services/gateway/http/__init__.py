"""The contract over HTTP: JSON from the annotations, server-sent events, upload, thumbnails, pages."""
