"""Models behind the methods, one file a kind. Nothing here is imported until it is used."""
