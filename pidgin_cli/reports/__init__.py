"""What people read: transcripts, the README of an experiment, its notebook, figures and report."""
