"""Lists written as plain text, which is how hand-written material stays readable."""


def items(text: str) -> list[str]:
    """The entries of a list written with bars and line breaks between them."""
    return [entry.strip() for entry in text.replace("\n", "|").split("|") if entry.strip()]


def words(text: str) -> list[str]:
    """The entries of a list written with blanks between them."""
    return text.split()


def lines(text: str) -> list[str]:
    """The lines that are not empty."""
    return [line for line in text.strip().split("\n") if line]
