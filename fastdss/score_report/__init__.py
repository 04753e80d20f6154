"""``fastdss report``: one self-contained HTML page of what a guard saw in a folder of scores."""
