"""Studies side by side: the same words, tables and pictures on the terminal, the page and in notebooks."""
