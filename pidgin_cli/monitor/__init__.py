"""What a person sees of a conversation."""
