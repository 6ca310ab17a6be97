"""The faces in the browser: gradio tabs, one file a tab. Building one loads no torch."""
