"""Running conversations: folders, processes, and the one writer of the manifest."""
