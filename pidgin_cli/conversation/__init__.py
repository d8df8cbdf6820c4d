"""A conversation: whose turn it is, what each agent sees, and when it ends."""
