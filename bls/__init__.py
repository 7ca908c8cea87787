"""What a model.py sees (`triton_python_backend_utils`), and the backend that hosts it."""
