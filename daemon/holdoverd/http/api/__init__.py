"""The handlers, a file for each kind of thing. Each takes the context and an admitted request."""
