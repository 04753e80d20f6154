"""How the tiny guard that ships in fastdss/guards/tiny_guard was made; not part of the installed package."""
