"""Pidgin: a command-line laboratory for conversations between language models."""
