"""Trained models in use: images from prompts, embeddings from captions and images, exported programs."""
