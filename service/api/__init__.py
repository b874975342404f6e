"""HTTP: the app, its routes, and what they answer."""
