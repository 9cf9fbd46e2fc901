"""Who may do what at the gateway: credentials, roles, quotas, and the log of what was done."""
