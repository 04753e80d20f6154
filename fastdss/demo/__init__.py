"""The demonstration behind `fastdss demo`: score, train four arms, evaluate, and show what happened."""
