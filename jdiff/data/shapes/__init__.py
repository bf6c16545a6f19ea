"""The shapes world: captions of simple scenes, their images, and a reader that tells which scene an image shows."""
