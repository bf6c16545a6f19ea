"""The shapes world: a small language, its pictures, and a reader that knows when a picture says what was asked."""
