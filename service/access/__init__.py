"""Who may do what: roles, principals, tokens, OpenID Connect, and how often somebody may ask."""
