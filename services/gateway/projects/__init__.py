"""Projects: their settings, webhooks, retention, and how one is deleted with all its data."""
