"""Pidgin."""
