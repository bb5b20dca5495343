"""Tools around the app: demo, conversion, training, evaluation, profiling, figures."""
