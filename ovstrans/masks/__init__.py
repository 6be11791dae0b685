"""The mask: which weights of an image encoder are kept, its file, and keeping it in force."""
