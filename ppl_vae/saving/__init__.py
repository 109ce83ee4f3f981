"""A VAE in a file: described by how it was made, with its weights (`files`), and exported to graphs (`exporting`)."""

__all__: list[str] = []
