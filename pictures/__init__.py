"""Draws pictures from arrays and names, with matplotlib. Knows nothing of runs and nets.

Synopsis:

figure = confusion_matrix(counts, class_names)
save(figure, path)
"""
