"""What a person sees: figures, the page, the terminal. All of it is drawn from one ``Results``."""
