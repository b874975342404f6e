"""Webhooks: others' servers are told of changes to jobs, signed, until they have heard; nobody else is called."""
