"""``fastdss report``: stored scores as one HTML page that loads nothing from elsewhere.
It may import corpus, star and pages.
Start with page.py, which writes the page; data.py counts and sorts what it shows; the .js and .css files are its script
and style sheet.
"""
