"""``fastdss report``: stored scores as one HTML page without foreign script.
It may import corpus and pages.
Start with page.py; data.py is what the page shows; the .js and .css files are its behaviour.
"""
