"""CLIP through open_clip: loading it, its image encoder's backbone, and its text embeddings."""
