"""``fastdss train``: from command-line flags to a trained model and its report.
It may import the trainers beside it and the scoring of whole data sets.
Start with run.py; settings.py says what can be set; checkpoints.py decides where a run starts.
"""
