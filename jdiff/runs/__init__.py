"""Runs on disk: what a directory holds, how a run begins and resumes, and how it is trained."""
