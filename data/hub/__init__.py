"""Data sets and policies to and from the Hugging Face hub."""
