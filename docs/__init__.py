"""Pages in Markdown, the configuration of Sphinx, and the program that writes the reference pages."""
