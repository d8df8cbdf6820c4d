"""What a person asks for: flags or YAML, checked, resolved and expanded into conversations."""
