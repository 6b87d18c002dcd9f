'The bundled datasets; read them with `importlib.resources.files("rag_finetune.bundled")`.'
