"""Where attempts run: Ray, and the folders they write into."""
